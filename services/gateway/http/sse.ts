/** Server-sent events: one JSON value per event, until `[DONE]`. */
import { once } from 'node:events';
import type { OutgoingHttpHeaders, ServerResponse } from 'node:http';
import type { FastifyReply } from 'fastify';
import { ServingError } from '../../lib/process/errors.ts';
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
  readonly #slowReaderMs: number;
  #open = false;
  /** Settles when the client has taken what was written; undefined while nothing waits for that. */
  #drained: Promise<void> | undefined;

  /**
   * @param signal ends the wait for a client that does not read its events.
   * @param slowReaderMs how long a client may take not a byte of what waits for it, in ms.
   */
  constructor(reply: FastifyReply, signal: AbortSignal, slowReaderMs: number) {
    this.#reply = reply;
    this.#signal = signal;
    this.#slowReaderMs = slowReaderMs;
  }

  /** Whether an event was sent: from then on the status is 200, and failures are events. */
  get open(): boolean {
    return this.#open;
  }

  /**
   * Sends one event, and waits while the client reads more slowly than we write.
   * @throws ServingError slow_reader; the signal's reason.
   */
  async send(value: unknown): Promise<void> {
    this.#signal.throwIfAborted();
    if (this.#write(`data: ${toJson(value)}\n\n`)) return;
    this.#drained ??= this.#waitForDrain().finally(() => {
      this.#drained = undefined;
    });
    await this.#drained;
  }

  /** The socket's own timer tells whether a client reads: each byte that it takes starts the timer anew. */
  async #waitForDrain(): Promise<void> {
    const { raw } = this.#reply;
    const slow = new AbortController();
    const cut = () => {
      const message = `the client took nothing of its answer for ${this.#slowReaderMs} ms (--slow-reader-ms)`;
      slow.abort(new ServingError('slow_reader', message));
    };
    raw.once('timeout', cut);
    raw.setTimeout(this.#slowReaderMs);
    const live = AbortSignal.any([this.#signal, slow.signal]);
    try {
      await once(raw, 'drain', { signal: live });
    } catch (error) {
      live.throwIfAborted();
      throw error;
    } finally {
      raw.setTimeout(0);
      raw.removeListener('timeout', cut);
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
