/** Server-sent events: one JSON value per event, until `[DONE]`. */
import type { OutgoingHttpHeaders, ServerResponse } from 'node:http';
import type { FastifyReply } from 'fastify';
import { jsonPieces, toJson } from './json.ts';
import { closeAfterLinger } from './limits.ts';
import { Outlet } from './outlet.ts';

/** Streams whose events have begun. */
const streams = new WeakMap<ServerResponse, EventStream>();

/** Sends a comment, which clients skip, if the response is an open stream of events. */
export function sendComment(response: ServerResponse): void {
  if (response.writableEnded || response.writableNeedDrain) return;
  if (streams.get(response)?.withinEvent === false) response.write(':\n\n');
}

export class EventStream {
  readonly #reply: FastifyReply;
  readonly #outlet: Outlet;
  #open = false;
  /** Settles when the event that is sent in pieces is out. */
  #long: Promise<void> | undefined;

  /**
   * @param signal ends the wait for a client that does not read its events.
   * @param slowReaderMs how long a client may take not a byte of what waits for it, in ms.
   */
  constructor(reply: FastifyReply, signal: AbortSignal, slowReaderMs: number) {
    this.#reply = reply;
    this.#outlet = new Outlet(reply.raw, signal, slowReaderMs);
  }

  /** Whether an event was sent: from then on the status is 200, and failures are events. */
  get open(): boolean {
    return this.#open;
  }

  /** Whether a part of an event is out and the rest is not. */
  get withinEvent(): boolean {
    return this.#long !== undefined;
  }

  /**
   * Sends one event, and waits while the client reads more slowly than we write.
   * @param long whether it may be too large to be written in one go.
   * @throws ServingError slow_reader; the signal's reason.
   */
  async send(value: unknown, long = false): Promise<void> {
    while (this.#long) await this.#long;
    this.#begin();
    if (!long) return this.#outlet.send(`data: ${toJson(value)}\n\n`);
    const sent = this.#outlet.sendPieces(eventPieces(value));
    this.#long = sent.then(() => {
      this.#long = undefined;
    });
    this.#long.catch(() => {}); // `sent` tells
    return sent;
  }

  /** @param last the event before `[DONE]`. */
  end(last?: unknown): void {
    const { raw } = this.#reply;
    // A client would take anything else for the rest of the event.
    if (this.withinEvent) return void raw.destroy();
    this.#begin();
    if (last !== undefined) raw.write(`data: ${toJson(last)}\n\n`);
    raw.end('data: [DONE]\n\n');
    closeAfterLinger(raw);
  }

  #begin(): void {
    if (this.#open) return;
    const { raw } = this.#reply;
    this.#open = true;
    this.#reply.hijack();
    streams.set(raw, this);
    raw.writeHead(200, {
      ...(this.#reply.getHeaders() as OutgoingHttpHeaders),
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache',
      // Proxies must not gather events.
      'x-accel-buffering': 'no',
    });
  }
}

function* eventPieces(value: unknown): Generator<string> {
  yield 'data: ';
  yield* jsonPieces(value);
  yield '\n\n';
}
