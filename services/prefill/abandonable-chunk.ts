/**
 * The chunk that the engine computes now. When its caller hangs up, it is interrupted only if that helps somebody:
 * editors cancel far more requests than they let finish, and the next request usually begins with the same tokens.
 */
import { BLOCK_TOKENS, type PromptChain, sharedBlocks } from '../lib/kv/prefix.ts';

export interface ChunkRange {
  readonly chain: PromptChain;
  /** The chunk computes positions [past, end) of the prompt. */
  readonly past: number;
  readonly end: number;
  /** Aborts when the caller no longer wants the prompt. */
  readonly signal: AbortSignal;
}

/** The chain of the prompt that waits for this chunk to end; undefined if no prompt waits. */
export type NextInLine = { readonly chain: PromptChain } | undefined;

export class AbandonableChunk {
  readonly #range: ChunkRange;
  readonly #stop = new AbortController();
  readonly #startedMs = performance.now();

  constructor(range: ChunkRange) {
    this.#range = range;
  }

  /** Aborts, with the reason of the prompt's own signal, when the rest of the chunk is not to be computed. */
  get signal(): AbortSignal {
    return this.#stop.signal;
  }

  /**
   * Decides again whether to go on, after the caller hung up or another prompt came.
   * @param contended whether something other than prompts wants the engine.
   * @param rate tokens computed per second; 0 when not yet known.
   */
  reconsider(next: NextInLine, contended: boolean, rate: number): void {
    const { signal } = this.#range;
    if (!signal.aborted || this.#stop.signal.aborted) return;
    const computed = ((performance.now() - this.#startedMs) / 1000) * rate;
    if (contended || !isWorthFinishing(this.#range, next, computed)) this.#stop.abort(signal.reason);
  }
}

/**
 * Whether finishing an abandoned chunk takes no longer than the time it saves the next prompt. While no prompt waits,
 * finishing delays nobody, so it is worth it whenever a later prompt could find the result.
 * @param computed tokens of the chunk that are already done, by estimate.
 */
function isWorthFinishing(
  { chain, past, end }: Omit<ChunkRange, 'signal'>,
  next: NextInLine,
  computed: number,
): boolean {
  const blocks = next === undefined ? chain.length : sharedBlocks(chain, next.chain);
  const savedTokens = Math.min(blocks * BLOCK_TOKENS, end) - past;
  return savedTokens > 0 && (next === undefined || savedTokens >= end - past - computed);
}
