/**
 * Answers that are streams of JSON values: server-sent events, with or without `[DONE]` at their end, or one value per
 * line.
 */
import type { OutgoingHttpHeaders, ServerResponse } from 'node:http';
import type { FastifyReply } from 'fastify';
import { jsonPieces, toJson } from './json.ts';
import { closeAfterLinger } from './limits.ts';
import { Outlet } from './outlet.ts';

/** How the values of a stream are written. */
export interface StreamFormat {
  readonly contentType: string;
  /** Stand around each value. */
  readonly before: string;
  readonly after: string;
  /** What comes after the last value. */
  readonly end: string;
  /** What all clients skip between two values. */
  readonly filler: string;
}

/** OpenAI's: server-sent events until `[DONE]`. */
export const SSE_UNTIL_DONE: StreamFormat = {
  contentType: 'text/event-stream; charset=utf-8',
  before: 'data: ',
  after: '\n\n',
  end: 'data: [DONE]\n\n',
  filler: ':\n\n',
};
/** llama.cpp's own: the last event says of itself that it is the last. */
export const SSE: StreamFormat = { ...SSE_UNTIL_DONE, end: '' };
/** Ollama's: a value per line. Before a value JSON may have spaces. */
export const JSON_LINES: StreamFormat = {
  contentType: 'application/x-ndjson',
  before: '',
  after: '\n',
  end: '',
  filler: ' ',
};

/** Streams whose events have begun. */
const streams = new WeakMap<ServerResponse, EventStream>();

/** Sends something that clients skip, such as a comment, if the response is an open stream of events. */
export function sendFiller(response: ServerResponse): void {
  if (response.writableEnded || response.writableNeedDrain) return;
  const stream = streams.get(response);
  if (stream?.withinEvent === false) response.write(stream.format.filler);
}

export class EventStream {
  readonly #reply: FastifyReply;
  readonly #outlet: Outlet;
  readonly format: StreamFormat;
  #open = false;
  /** Settles when the event that is sent in pieces is out. */
  #long: Promise<void> | undefined;

  /**
   * @param signal ends the wait for a client that does not read its events.
   * @param slowReaderMs how long a client may take not a byte of what waits for it, in ms.
   */
  constructor(reply: FastifyReply, signal: AbortSignal, slowReaderMs: number, format = SSE_UNTIL_DONE) {
    this.#reply = reply;
    this.format = format;
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
    if (!long) return this.#outlet.send(this.#written(value));
    const sent = this.#outlet.sendPieces(eventPieces(value, this.format));
    this.#long = sent.then(() => {
      this.#long = undefined;
    });
    this.#long.catch(() => {}); // `sent` tells
    return sent;
  }

  /** @param last the last value. */
  end(last?: unknown): void {
    const { raw } = this.#reply;
    // A client would take anything else for the rest of the event.
    if (this.withinEvent) return void raw.destroy();
    this.#begin();
    if (last !== undefined) raw.write(this.#written(last));
    raw.end(this.format.end);
    closeAfterLinger(raw);
  }

  #written(value: unknown): string {
    return `${this.format.before}${toJson(value)}${this.format.after}`;
  }

  #begin(): void {
    if (this.#open) return;
    const { raw } = this.#reply;
    this.#open = true;
    this.#reply.hijack();
    streams.set(raw, this);
    raw.writeHead(200, {
      ...(this.#reply.getHeaders() as OutgoingHttpHeaders),
      'content-type': this.format.contentType,
      'cache-control': 'no-cache',
      // Proxies must not gather events.
      'x-accel-buffering': 'no',
    });
  }
}

function* eventPieces(value: unknown, { before, after }: StreamFormat): Generator<string> {
  yield before;
  yield* jsonPieces(value);
  yield after;
}
