/**
 * A client may close its sending side when its request is out, and still wait for the answer (RFC 9112, 9.6). The end
 * of what it sends is therefore not the end of the client. But a client that goes away ends its connection in the same
 * way, and its work must not go on: TCP tells the two apart only when something is sent, which a client that has gone
 * answers with a reset.
 */
import type { Server, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { sendFiller } from './sse.ts';

/**
 * Pauses before each probe, in ms; the last one repeats. The first probe draws the reset, and the next one meets it:
 * 100 ms is longer than most round trips.
 */
const PROBE_PAUSES_MS = [0, 100, 1_000] as const;

/** Keeps connections whose client has closed its sending side. Node has no documented option for it. */
export function allowHalfClose(server: Server): void {
  (server as Server & { httpAllowHalfOpen: boolean }).httpAllowHalfOpen = true;
}

/**
 * Finds out, again and again, whether a client is still there of which nothing more is read. What is sent to it for
 * that is skipped by all clients: before the answer an interim response, `100 Continue`, and between events a comment.
 * HTTP/1.0 has no interim responses. Before the answer, the end of such a request therefore still ends its work, since
 * a proxy that speaks HTTP/1.0 to us (nginx by default) tells us in this way that its client has gone.
 * @param unheard the response whose client may be gone without our seeing it; undefined while there is none.
 * @returns starts it, for a client that has not closed its sending side. It ends when there is nothing to find out.
 */
export function probeClient(socket: Socket, unheard: () => ServerResponse | undefined): () => void {
  let timer: NodeJS.Timeout | undefined;
  const probe = (count: number) => {
    const pause = PROBE_PAUSES_MS[Math.min(count, PROBE_PAUSES_MS.length - 1)];
    timer = setTimeout(() => {
      const response = unheard();
      if (response) ask(socket, response);
      if (response || socket.readableEnded) return probe(count + 1);
      timer = undefined;
    }, pause).unref();
  };
  const start = () => {
    if (timer === undefined && !socket.destroyed) probe(0);
  };
  socket.once('end', start);
  socket.once('close', () => clearTimeout(timer));
  return start;
}

function ask(socket: Socket, response: ServerResponse): void {
  if (response.headersSent) sendFiller(response);
  else if (response.req.httpVersion !== '1.0') response.writeContinue();
  else if (socket.readableEnded) socket.destroy();
}
