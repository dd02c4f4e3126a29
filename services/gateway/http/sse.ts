/** Server-sent events: one JSON value per event, until `[DONE]`. */
import { once } from 'node:events';
import type { OutgoingHttpHeaders, ServerResponse } from 'node:http';
import type { FastifyReply } from 'fastify';
import { toJson } from './json.ts';
import { closeAfterLinger } from './limits.ts';

/** Responses whose events have begun. */
const streams = new WeakSet<ServerResponse>();

/** Sends a comment, which clients skip, if the response is an open stream of events. */
export function sendComment(response: ServerResponse): void {
  if (streams.has(response) && !response.writableEnded && !response.writableNeedDrain) response.write(':\n\n');
}

export class EventStream {
  readonly #reply: FastifyReply;
  readonly #signal: AbortSignal;
  #open = false;

  /** @param signal ends the wait for a client that does not read its events. */
  constructor(reply: FastifyReply, signal: AbortSignal) {
    this.#reply = reply;
    this.#signal = signal;
  }

  /** Whether an event was sent: from then on the status is 200, and failures are events. */
  get open(): boolean {
    return this.#open;
  }

  /**
   * Sends one event, and waits while the client reads more slowly than we write.
   * @throws the signal's reason.
   */
  async send(value: unknown): Promise<void> {
    this.#signal.throwIfAborted();
    if (this.#write(`data: ${toJson(value)}\n\n`)) return;
    try {
      await once(this.#reply.raw, 'drain', { signal: this.#signal });
    } catch (error) {
      this.#signal.throwIfAborted();
      throw error;
    }
  }

  /** @param last the event before `[DONE]`. */
  end(last?: unknown): void {
    if (last !== undefined) this.#write(`data: ${toJson(last)}\n\n`);
    this.#write('data: [DONE]\n\n');
    this.#reply.raw.end();
    closeAfterLinger(this.#reply.raw);
  }

  #write(text: string): boolean {
    const { raw } = this.#reply;
    if (!this.#open) {
      this.#open = true;
      this.#reply.hijack();
      streams.add(raw);
      raw.writeHead(200, {
        ...(this.#reply.getHeaders() as OutgoingHttpHeaders),
        'content-type': 'text/event-stream; charset=utf-8',
        'cache-control': 'no-cache',
        // Proxies must not gather events.
        'x-accel-buffering': 'no',
      });
    }
    return raw.write(text);
  }
}
