/**
 * A client may close its sending side when its request is out, and still wait for the answer (RFC 9112, 9.6). The end
 * of what it sends is therefore not the end of the client. But a client that goes away ends its connection in the same
 * way, and its work must not go on: TCP tells the two apart only when something is sent, which a client that has gone
 * answers with a reset.
 */
import type { Server } from 'node:http';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { sendComment } from './sse.ts';

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
 * Finds out whether a client that has closed its sending side is still there. What is sent to it for that is skipped by
 * all clients: before the answer an interim response, `100 Continue`, and between events a comment. HTTP/1.0 has no
 * interim responses. Before the answer, the end of such a request therefore still ends its work, since a proxy that
 * speaks HTTP/1.0 to us (nginx by default) tells us in this way that its client has gone.
 */
export function watchHalfClose({ raw: request }: FastifyRequest, { raw: response }: FastifyReply): void {
  const { socket } = request;
  let timer: NodeJS.Timeout | undefined;
  const probe = (count: number) => {
    const pause = PROBE_PAUSES_MS[Math.min(count, PROBE_PAUSES_MS.length - 1)];
    timer = setTimeout(() => {
      if (response.headersSent) sendComment(response);
      else response.writeContinue();
      probe(count + 1);
    }, pause).unref();
  };
  const onEnd = () => {
    if (request.httpVersion === '1.0' && !response.headersSent) socket.destroy();
    else probe(0);
  };
  socket.setMaxListeners(0); // one for each request that waits: clients may send many at once
  socket.once('end', onEnd);
  response.once('close', () => {
    socket.removeListener('end', onEnd);
    clearTimeout(timer);
  });
}
