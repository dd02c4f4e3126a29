/**
 * Streams that go on although nobody reads them, because the next keystroke may. An editor hangs up at a keystroke, and
 * asks again when the typist pauses; a session's next request ends the one before it. Such a stream costs a slot, so it
 * goes on for a bounded time, while no prompt waits for a worker, and few of them do. It goes on no further than the
 * answer that was asked for, which may end with a line or a statement (`stop_at`).
 */
import { ServingError } from '../../lib/process/errors.ts';
import { metrics } from '../../lib/process/metrics.ts';
import type { TrackedWork } from '../admission/inflight.ts';
import type { CompletionConfig } from './settings.ts';
import type { Answer, TokenStream } from './token-stream.ts';

export interface LingeringParts extends Pick<CompletionConfig, 'lingerMs'> {
  /** Whether prompts wait for workers. */
  readonly isBusy: () => boolean;
  /** Lets in work that is not a request: a gateway that drains waits for it. @throws ServingError draining */
  readonly track: () => TrackedWork;
}

/**
 * Time that the stream of a superseded request waits for the request that superseded it, in ms: retrieval and the
 * building of its prompt take less. That request ends the wait.
 */
const SUCCESSOR_MS = 250;
/** Streams that go on at the same time. */
const MOST = 16;
/** A stream that went on looks this often whether a prompt waits, in ms. */
const LOOK_MS = 25;

export class Lingering {
  readonly #parts: LingeringParts;
  readonly #ends = new Map<TokenStream, () => void>();

  constructor(parts: LingeringParts) {
    this.#parts = parts;
  }

  /**
   * Whether a stream goes on that nobody reads.
   * @param reason why its last reader has left.
   * @param answer that of its last reader, with which the stream ends.
   */
  goesOn(stream: TokenStream, reason: unknown, answer: Answer): boolean {
    const { lingerMs, isBusy, track } = this.#parts;
    const code = reason instanceof ServingError ? reason.code : undefined;
    this.#forget(stream); // it went on before, and was read again since
    const ms = code === 'client_gone' ? lingerMs : code === 'superseded' ? Math.max(lingerMs, SUCCESSOR_MS) : 0;
    if (ms === 0 || isBusy() || this.#ends.size >= MOST) return false;
    let work: TrackedWork;
    try {
      work = track();
    } catch {
      return false; // the gateway drains
    }
    const end = () => this.end(stream);
    const timer = setTimeout(end, ms);
    const look = setInterval(() => {
      // A stream that is read again, or over, has no need of this.
      if (stream.isRead || stream.over || isBusy()) end();
    }, LOOK_MS);
    work.signal.addEventListener('abort', end, { once: true });
    const forgotten = new AbortController();
    this.#ends.set(stream, () => {
      forgotten.abort();
      clearTimeout(timer);
      clearInterval(look);
      work.release();
    });
    metrics.lingering.set(this.#ends.size);
    void this.#endWith(answer, stream, forgotten.signal);
    return true;
  }

  /** Ends a stream where an answer that is made of it would end. Never rejects. @param signal ends the wait. */
  async #endWith({ from, rest }: Answer, stream: TokenStream, signal: AbortSignal): Promise<void> {
    const takes = rest();
    try {
      for await (const part of stream.follow(from, signal)) {
        if (await takes(part, signal)) return this.end(stream);
      }
    } catch {
      // It is read again, its time is over, or its workers have failed it: nobody waits for it to end.
    }
  }

  /** The time of a stream is over: unless somebody reads it, it ends. */
  end(stream: TokenStream): void {
    if (this.#forget(stream)) stream.abandon();
  }

  /** @returns whether the stream went on. */
  #forget(stream: TokenStream): boolean {
    const release = this.#ends.get(stream);
    if (release === undefined) return false;
    this.#ends.delete(stream);
    metrics.lingering.set(this.#ends.size);
    release();
    return true;
  }
}
