/**
 * Computes one prompt: chunk by chunk into the slot of its lease, so that readers can pull the finished chunks while
 * later ones still compute, then the first token of every choice. worker.ts decides which prompt that is.
 */
import { OutputHistory, sample, tokenLogprob } from '../lib/engine/sampler.ts';
import type { PromptChunk } from '../lib/engine/session.ts';
import type { KvPool } from '../lib/kv/pool.ts';
import type { PrefixSlot, PromptChain } from '../lib/kv/prefix.ts';
import type { SampledToken, Sampling } from '../lib/request/next-token.ts';
import { softWithin, type TokenPrompt } from '../lib/request/token-prompt.ts';
import { AbandonableChunk, type NextInLine } from './abandonable-chunk.ts';
import type { Lease } from './leases.ts';

/** The part of DecoderSession that prefill uses. */
export interface PromptEngine {
  readonly pool: KvPool;
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly overdueMs: number;
  /** Logits `[logitRows, vocab]`. */
  chunk(chunk: PromptChunk, signal?: AbortSignal): Promise<Float32Array>;
}

export interface PrefillJob {
  readonly requestId: string;
  /** For the log; undefined where traces are off. */
  readonly traceId?: string | undefined;
  readonly prompt: TokenPrompt;
  /** One per choice. */
  readonly choices: readonly Sampling[];
  /** Decoders that will pull the KV. */
  readonly readers: number;
  /** Alternatives to report per prompt token; -1 for none. */
  readonly promptLogprobs: number;
  /** The first prompt token that is reported then, counted from 0: those before it need no logits. */
  readonly promptLogprobsFrom: number;
  /** Only prompts of the same salt share KV. */
  readonly cacheSalt: string;
  readonly signal: AbortSignal;
  /** Told of each chunk that is in the slot, by its positions [from, to). */
  readonly onChunk?: ((from: number, to: number) => void) | undefined;
  /** Told of the positions that the slot holds when KV was read from disk. */
  readonly onRestored?: ((positions: number) => void) | undefined;
}

/** A job and the hashes under which its KV can be found again. */
export interface HashedJob extends PrefillJob {
  /** Without the blocks from the first position on whose logits are wanted: that must be computed. */
  readonly chain: PromptChain;
}

export interface PrefillResult {
  /** One per choice. */
  readonly tokens: readonly SampledToken[];
  /**
   * One per prompt position, if asked for: undefined for the first, which nothing predicts, and for those before the
   * first that is reported.
   */
  readonly promptLogprobs: readonly (SampledToken | undefined)[];
  /** Prompt tokens that were not computed, because an earlier prompt began with the same ones. */
  readonly cachedTokens: number;
  readonly seconds: number;
  readonly chunks: number;
}

/**
 * Prompt logprobs need the logits of each position; so many of them in a chunk keep them small (vocab x 4 bytes each).
 */
const LOGPROB_CHUNK_ROWS = 64;

export class PromptComputer {
  readonly #engine: PromptEngine;
  readonly #chunkTokens: () => number;
  #currentChunk: AbandonableChunk | undefined;

  /** @param chunkTokens tokens of the next chunk. */
  constructor(engine: PromptEngine, chunkTokens: () => number) {
    this.#engine = engine;
    this.#chunkTokens = chunkTokens;
  }

  /**
   * @param betweenChunks runs after every chunk but the last and may compute other prompts; `seconds` of the result
   *   does not include its time.
   * @throws the reason of the job's signal; whatever the engine throws.
   */
  async compute(
    job: HashedJob,
    start: PrefixSlot,
    lease: Lease,
    betweenChunks: (remainingTokens: number) => Promise<void>,
  ): Promise<PrefillResult> {
    const startedMs = performance.now();
    const { length } = job.prompt.ids;
    const promptLogprobs = new Array<SampledToken | undefined>(unreported(job)).fill(undefined);
    let lastRow: Float32Array = new Float32Array(0);
    let chunks = 0;
    let pausedMs = 0;
    // Positions that the slot holds already can be pulled at once; those to be copied, only after the first chunk.
    if (start.copyFrom === undefined && start.positions > 0) lease.advance(start.positions);
    for (let past = start.positions; past < length; ) {
      const end = this.#endOfChunk(job, past);
      const copyFrom = chunks === 0 ? start.copyFrom : undefined;
      const logits = await this.#computeChunk(job, lease.slot.index, past, end, copyFrom);
      chunks++;
      lease.advance(end);
      job.onChunk?.(past, end);
      job.signal.throwIfAborted(); // after `advance`: what is computed can be reused
      if (job.promptLogprobs >= 0) promptLogprobs.push(...this.#readLogprobs(job, logits, past, end));
      if (end === length) {
        lastRow = logits.subarray(logits.length - this.#engine.vocabSize);
      } else {
        const pausedAtMs = performance.now();
        await betweenChunks(length - end);
        pausedMs += performance.now() - pausedAtMs;
      }
      past = end;
    }
    const tokens = job.choices.map((sampling) => firstToken(lastRow, sampling));
    const seconds = (performance.now() - startedMs - pausedMs) / 1000;
    return { tokens, promptLogprobs, cachedTokens: start.positions, seconds, chunks };
  }

  /**
   * Interrupts the current chunk if its caller hung up and finishing it is not worth it; see {@link AbandonableChunk}.
   */
  reconsider(next: NextInLine, contended: boolean, rate: number): void {
    this.#currentChunk?.reconsider(next, contended, rate);
  }

  #endOfChunk(job: HashedJob, past: number): number {
    const { length } = job.prompt.ids;
    const wanted = this.#chunkTokens();
    const size = Math.min(wanted, Math.max(0, firstLogitRow(job) - past) + LOGPROB_CHUNK_ROWS);
    // The last token never gets a run of its own, where its sums would be rounded differently (kv/prefix.ts).
    return length - past <= size + 1 ? length : past + size;
  }

  async #computeChunk(
    job: HashedJob,
    slot: number,
    past: number,
    end: number,
    copyFrom: PrefixSlot['copyFrom'],
  ): Promise<Float32Array> {
    const { ids, soft } = job.prompt;
    const chunk = new AbandonableChunk({ chain: job.chain, past, end, signal: job.signal });
    this.#currentChunk = chunk;
    try {
      return await this.#engine.chunk(
        {
          slot,
          past,
          ids: ids.subarray(past, end),
          soft: softWithin(soft, past, end),
          logitRows: logitRows(job, past, end),
          copyFrom: copyFrom?.slot,
        },
        chunk.signal,
      );
    } finally {
      this.#currentChunk = undefined;
      copyFrom?.done();
    }
  }

  /**
   * Logprobs of the reported tokens at positions (past, end]: the logits of position i say how likely the token at
   * i + 1 was.
   */
  #readLogprobs(job: HashedJob, logits: Float32Array, past: number, end: number): SampledToken[] {
    const { ids } = job.prompt;
    const vocab = this.#engine.vocabSize;
    const logprobs: SampledToken[] = [];
    const first = Math.max(past, firstLogitRow(job));
    for (let position = first; position < end && position + 1 < ids.length; position++) {
      const row = logits.subarray((position - first) * vocab, (position - first + 1) * vocab);
      logprobs.push(tokenLogprob(row, ids[position + 1] as number, job.promptLogprobs));
    }
    return logprobs;
  }
}

/** The first position whose logits are wanted: the one before the first token that is reported, or the last one. */
function firstLogitRow({ prompt: { ids }, promptLogprobs, promptLogprobsFrom }: PrefillJob): number {
  if (promptLogprobs < 0) return ids.length - 1;
  return Math.max(0, Math.min(promptLogprobsFrom, ids.length) - 1);
}

/** Places of the result at the beginning that stay empty. */
const unreported = (job: PrefillJob) => (job.promptLogprobs < 0 ? 0 : firstLogitRow(job) + 1);

/** Rows of the chunk whose logits are wanted. */
function logitRows(job: HashedJob, past: number, end: number): number[] {
  const first = Math.max(past, firstLogitRow(job));
  return Array.from({ length: Math.max(0, end - first) }, (_, i) => first - past + i);
}

/** Samples output position 0, or the one after the output that stands at the end of the prompt already. */
const firstToken = (logits: Float32Array, sampling: Sampling) =>
  sample(logits, sampling, sampling.priorOutputIds.length, new OutputHistory(sampling.priorOutputIds));
