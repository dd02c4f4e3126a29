/**
 * The tokens of one sequence, from the workers to whoever reads them. The request that had it computed reads it, and
 * so may a later one whose prompt is the first one's and what was typed of its output. Who generates and who reads do
 * not wait for each other: what is not read yet is kept, at most `max_tokens` tokens.
 */
import type { FinishReason, SampledToken } from '../../lib/request/next-token.ts';
import type { TokenPrompt } from '../../lib/request/token-prompt.ts';

/** Tokens that a reader takes at once. */
export interface StreamPart {
  readonly tokens: readonly SampledToken[];
  /** Why the sequence ended with them; undefined where it goes on, or where `max_tokens` of its request ended it. */
  readonly finish: FinishReason | undefined;
}

/** What a reader makes of a stream. */
export interface Answer {
  /** Number of the stream's token that it begins with. */
  readonly from: number;
  /** Tells where it would end: takes parts of the stream, in order, and says whether it has ended with the last one. */
  readonly rest: () => (part: StreamPart, signal: AbortSignal) => Promise<boolean>;
}

/** Who reads a stream. */
export interface Reader {
  readonly signal: AbortSignal;
  /** Whether it is the request that has the tokens computed. */
  readonly isOwner: boolean;
  readonly answer: Answer;
}

export interface StreamStart {
  readonly prompt: TokenPrompt;
  readonly maxTokens: number;
  readonly stopIds: readonly number[];
  /** Output that is there already. */
  readonly tokens: readonly SampledToken[];
  /**
   * Called when nobody reads it any more and it is not over.
   * @param answer that of the last reader.
   * @returns whether it goes on for somebody who may come. Otherwise it is ended.
   */
  readonly onUnread: (stream: TokenStream, reason: unknown, answer: Answer) => boolean;
}

/** Reason with which the work for a stream is aborted that nobody needs any more. */
const UNREAD = new Error('nobody reads the stream');

export class TokenStream {
  readonly prompt: TokenPrompt;
  readonly #start: StreamStart;
  readonly #tokens: SampledToken[];
  readonly #ids: number[];
  readonly #unneeded = new AbortController();
  #finish: FinishReason | undefined;
  #over = false;
  #error: unknown;
  #readers = 0;
  /** Tokens that were there when the request that had them computed had ended; undefined while it runs. */
  #ownerTokens: number | undefined;
  #waiting: (() => void)[] = [];

  constructor(start: StreamStart) {
    this.#start = start;
    this.prompt = start.prompt;
    this.#tokens = [...start.tokens];
    this.#ids = start.tokens.map(({ id }) => id);
  }

  /** Ends the work for the stream. */
  get signal(): AbortSignal {
    return this.#unneeded.signal;
  }

  /** Output token ids so far. */
  get ids(): readonly number[] {
    return this.#ids;
  }

  /** Whether the sequence has come to its end. */
  get finished(): boolean {
    return this.#finish !== undefined || this.#ids.length >= this.#start.maxTokens;
  }

  /** Whether no more tokens come: it has come to its end, has failed, or was ended. */
  get over(): boolean {
    return this.#over || this.finished;
  }

  get isRead(): boolean {
    return this.#readers > 0;
  }

  /** Tokens that the request that had them computed is charged for. */
  get chargedTokens(): number {
    return this.#ownerTokens ?? this.#ids.length;
  }

  /** Takes new tokens, in order. Those after the one that ends the sequence are ignored. */
  push(tokens: readonly SampledToken[], reported: FinishReason | undefined): void {
    for (const token of tokens) {
      if (this.over) break;
      this.#tokens.push(token);
      this.#ids.push(token.id);
      if (this.#start.stopIds.includes(token.id)) this.#finish = 'stop';
    }
    if (!this.finished) this.#finish = reported;
    this.#wake();
  }

  /** Nothing more comes. @param error is thrown to readers after the tokens that have come. */
  end(error?: unknown): void {
    this.#over = true;
    this.#error = error;
    this.#wake();
  }

  /** Ends the work for it, unless somebody reads it. */
  abandon(): void {
    if (!this.isRead) this.#unneeded.abort(UNREAD);
  }

  /**
   * The tokens from number `from` on, as they come. Leaving the loop ends the stream if nobody else needs it; a reader
   * whose signal is aborted has left at once, also while it is busy with the tokens that it has.
   * @throws the signal's reason; whatever the work for the stream has thrown.
   */
  read(from: number, reader: Reader): AsyncGenerator<StreamPart, void, undefined> {
    return this.#parts(from, reader.signal, reader);
  }

  /** The tokens from number `from` on, as they come, for whom the stream does not go on. @throws as {@link read}. */
  follow(from: number, signal: AbortSignal): AsyncGenerator<StreamPart, void, undefined> {
    return this.#parts(from, signal, undefined);
  }

  async *#parts(from: number, signal: AbortSignal, reader: Reader | undefined): AsyncGenerator<StreamPart> {
    let isHere = reader !== undefined;
    if (isHere) this.#readers++;
    const leave = () => {
      if (isHere) this.#left(reader!);
      isHere = false;
      this.#wake();
    };
    signal.addEventListener('abort', leave, { once: true });
    try {
      for (let next = from; ; ) {
        signal.throwIfAborted();
        if (next < this.#tokens.length) {
          const tokens = this.#tokens.slice(next);
          next = this.#tokens.length;
          yield { tokens, finish: this.#finish };
        } else if (this.over) {
          if (this.#error !== undefined && !this.finished) throw this.#error;
          return;
        } else await new Promise<void>((resolve) => this.#waiting.push(resolve));
      }
    } finally {
      signal.removeEventListener('abort', leave);
      leave();
    }
  }

  /** A reader has left; its signal's reason says why, unless it has what it wants. */
  #left({ signal, isOwner, answer }: Reader): void {
    this.#readers--;
    if (isOwner) this.#ownerTokens = this.#ids.length;
    if (!this.isRead && !this.over && !this.#start.onUnread(this, signal.reason, answer)) {
      this.#unneeded.abort(UNREAD);
    }
  }

  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}
