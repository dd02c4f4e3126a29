/**
 * The chunk that computes now. When nobody wants its prompt any more, it is interrupted only if that helps somebody: a
 * typist's requests are hung up on far more often than answered, and the next one begins as this one did.
 */
import { BLOCK_TOKENS, type PromptChain, sharedBlocks } from '../lib/kv/prefix.ts';

export interface ChunkRange {
  readonly chain: PromptChain;
  /** It computes positions [past, end) of the prompt. */
  readonly past: number;
  readonly end: number;
  /** Aborts when nobody wants the prompt any more. */
  readonly signal: AbortSignal;
}

/** The chain of the prompt that waits for this chunk to end. */
export type NextInLine = { readonly chain: PromptChain } | undefined;

export class AbandonableChunk {
  readonly #range: ChunkRange;
  readonly #stop = new AbortController();
  readonly #startedMs = performance.now();

  constructor(range: ChunkRange) {
    this.#range = range;
  }

  /** Aborts with the reason of the prompt's when the rest is not to be computed. */
  get signal(): AbortSignal {
    return this.#stop.signal;
  }

  /**
   * Someone came or went.
   * @param wanted whether others share the cores meanwhile.
   * @param rate tokens computed per second; 0 when not known.
   */
  reconsider(next: NextInLine, wanted: boolean, rate: number): void {
    const { signal } = this.#range;
    if (!signal.aborted || this.#stop.signal.aborted) return;
    const computed = ((performance.now() - this.#startedMs) / 1000) * rate;
    if (wanted || !isWorthItsRest(this.#range, next, computed)) this.#stop.abort(signal.reason);
  }
}

/**
 * Whether the rest of an abandoned chunk takes no longer than what it spares the next prompt. It costs nobody anything
 * as long as nobody waits, unless nothing of it can be found again.
 * @param computed tokens of the chunk that are done, by estimate.
 */
export function isWorthItsRest(
  { chain, past, end }: Omit<ChunkRange, 'signal'>,
  next: NextInLine,
  computed: number,
): boolean {
  const known = next === undefined ? chain.length : sharedBlocks(chain, next.chain);
  const spared = Math.min(known * BLOCK_TOKENS, end) - past;
  return spared > 0 && (next === undefined || spared >= end - past - computed);
}
