/**
 * Computes prompts, one after another, chunk by chunk; shortest first, one may pass another between two of its chunks. A prompt waits in the queue until a slot is free, gets a lease on
 * it at once (so that its KV can be pulled while later chunks still compute), and leaves its first token when done. What
 * an earlier prompt has in common with it is not computed again.
 */

import { Deferred } from '../lib/async/deferred.ts';
import { OutputHistory, promptLogprob, sample } from '../lib/engine/sampler.ts';
import type { PromptChunk } from '../lib/engine/session.ts';
import type { KvPool } from '../lib/kv/pool.ts';
import { chainOf, type PrefixCache, type PrefixSlot, type PromptChain } from '../lib/kv/prefix.ts';
import type { Logger } from '../lib/process/log.ts';
import { metrics } from '../lib/process/metrics.ts';
import { type SampledToken, type Sampling, softWithin, type TokenPrompt } from '../lib/request/sequence.ts';
import { AbandonableChunk } from './abandoned-chunk.ts';
import type { Lease, LeaseTable } from './leases.ts';
import type { PromptQueue } from './prompt-queue.ts';

/** What prefill needs of a DecoderSession. */
export interface PromptEngine {
  readonly pool: KvPool;
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly overdueMs: number;
  /** Logits [logitRows, vocab]. */
  chunk(chunk: PromptChunk, signal?: AbortSignal): Promise<Float32Array>;
}

export interface PrefillJob {
  readonly requestId: string;
  readonly prompt: TokenPrompt;
  /** One per choice. */
  readonly choices: readonly Sampling[];
  readonly readers: number;
  /** Alternatives per prompt token to report; -1 for none. */
  readonly promptLogprobs: number;
  /** Only prompts of the same salt share KV. */
  readonly cacheSalt: string;
  readonly signal: AbortSignal;
}

export interface PrefillResult {
  /** One per choice. */
  readonly tokens: readonly SampledToken[];
  /** One per prompt position; the first is undefined, since nothing predicts it. */
  readonly promptLogprobs: readonly (SampledToken | undefined)[];
  /** Prompt tokens that were not computed, since an earlier prompt began with them. */
  readonly cachedTokens: number;
  readonly seconds: number;
  readonly chunks: number;
}

/** A job in the worker's hands. Both promises reject with the reason when it fails or is aborted. */
export interface PrefillTicket {
  /** The prompt has its slot. */
  readonly accepted: Promise<{ lease: Lease; queueSeconds: number }>;
  readonly done: Promise<PrefillResult>;
}

export interface Pending extends PrefillJob {
  /** To be computed, as far as could be known when it came. */
  readonly tokens: number;
  /** Empty where every position must be computed: the logits of each are wanted. */
  readonly chain: PromptChain;
  readonly queuedAtMs: number;
  accept(value: { lease: Lease; queueSeconds: number }): void;
  finish(result: PrefillResult): void;
  fail(reason: unknown): void;
}

interface Started {
  readonly job: Pending;
  readonly start: PrefixSlot;
}

export interface PrefillWorkerOptions {
  /** Tokens of the next chunk. */
  readonly chunkTokens: () => number;
  /** Called when nothing waits or computes. */
  readonly onIdle: () => void;
  /** Whether others than prompts want the engine. */
  readonly engineContended: () => boolean;
}

/** Prompt logprobs need the logits of every position; chunks of this many keep them small (vocab x 4 bytes each). */
const LOGPROB_CHUNK = 64;

export class PrefillWorker {
  readonly #engine: PromptEngine;
  readonly #queue: PromptQueue<Pending>;
  readonly #leases: LeaseTable;
  readonly #prefixes: PrefixCache;
  readonly #options: PrefillWorkerOptions;
  readonly #log: Logger;
  #running = false;
  /** The first prompt that waits does so for a slot. */
  #inLine = false;
  #computing = 0;
  #underWay: AbandonableChunk | undefined;

  constructor(
    engine: PromptEngine,
    queue: PromptQueue<Pending>,
    leases: LeaseTable,
    prefixes: PrefixCache,
    options: PrefillWorkerOptions,
    log: Logger,
  ) {
    this.#engine = engine;
    this.#queue = queue;
    this.#leases = leases;
    this.#prefixes = prefixes;
    this.#options = options;
    this.#log = log;
  }

  /** @throws ServingError saturated. */
  submit(job: PrefillJob): PrefillTicket {
    job.signal.throwIfAborted();
    // The caller awaits one after the other; a failure rejects both.
    const accepted = new Deferred<{ lease: Lease; queueSeconds: number }>();
    const done = new Deferred<PrefillResult>();
    const chain = job.promptLogprobs >= 0 ? [] : chainOf(job.prompt, job.cacheSalt);
    const pending: Pending = {
      ...job,
      tokens: job.prompt.ids.length - this.#prefixes.matchedTokens(chain, job.prompt.ids.length),
      chain,
      queuedAtMs: performance.now(),
      accept: accepted.resolve,
      finish: done.resolve,
      fail: (reason) => {
        accepted.reject(reason);
        done.reject(reason);
      },
    };
    this.#queue.add(pending);
    this.#reconsider();
    const leave = () => {
      if (this.#queue.remove(pending)) pending.fail(job.signal.reason);
    };
    job.signal.addEventListener('abort', leave, { once: true });
    done.promise.finally(() => job.signal.removeEventListener('abort', leave)).catch(() => {});
    this.#wake();
    return { accepted: accepted.promise, done: done.promise };
  }

  /** Prompt tokens that compute now; what was reused is none. */
  get computing(): number {
    return this.#computing;
  }

  /** Looks for work: a prompt came. */
  #wake(): void {
    if (!this.#running && !this.#inLine) void this.#run(this.#next());
  }

  /** Whether a chunk whose prompt nobody wants any more is still worth its rest. */
  #reconsider(): void {
    this.#underWay?.reconsider(this.#queue.first, this.#options.engineContended(), this.#queue.rate);
  }

  async #run(first: Started | undefined): Promise<void> {
    this.#running = true;
    for (let next = first; next !== undefined; next = this.#next()) await this.#serve(next.job, next.start);
    // No await since the last look: whoever comes from here on wakes us.
    this.#running = false;
    if (this.#queue.length === 0) this.#options.onIdle();
  }

  /** The first prompt that waits, with a slot for it. Where there is none, it waits in line with sequences. */
  #next(): Started | undefined {
    const { pool } = this.#engine;
    const next = pool.contended ? undefined : this.#take();
    const waiting = next === undefined ? this.#queue.first : undefined;
    if (waiting) {
      this.#inLine = true;
      pool.wait(() => this.#turn(), waiting.queuedAtMs);
    }
    return next;
  }

  #turn(): boolean {
    const next = this.#take();
    if (next === undefined && this.#queue.length > 0) return false;
    this.#inLine = false;
    if (next) void this.#run(next);
    return true;
  }

  #take(): Started | undefined {
    const job = this.#queue.first;
    const start = job && this.#prefixes.reserve(job.chain, job.prompt.ids.length);
    if (job === undefined || start === undefined) return undefined;
    this.#queue.remove(job);
    return { job, start };
  }

  async #serve(job: Pending, start: PrefixSlot): Promise<void> {
    const { length } = job.prompt.ids;
    const lease = this.#leases.open(start.slot, length, job.readers);
    // While it computes, the slot is free when nothing writes to it any more: after the chunk under way at the latest.
    const cancel = () => {
      if (lease.isComplete) this.#leases.end(lease, 'cancelled');
      else this.#reconsider();
    };
    job.signal.addEventListener('abort', cancel, { once: true });
    lease.released.catch(() => {}).then(() => job.signal.removeEventListener('abort', cancel));
    this.#computing += length - start.positions;
    try {
      const queueSeconds = (performance.now() - job.queuedAtMs) / 1000;
      metrics.queueTime.observe(queueSeconds);
      if (job.promptLogprobs < 0) metrics.prefixQueries.inc(length); // others are computed whole
      metrics.prefixHits.inc(start.positions);
      job.accept({ lease, queueSeconds });
      const result = await this.#compute(job, start, lease);
      this.#queue.measured(length - result.cachedTokens, result.seconds);
      metrics.prefillTime.observe(result.seconds);
      job.finish(result);
    } catch (error) {
      if (job.signal.aborted)
        this.#prefixes.add(lease.slot.index, job.chain, lease.computed); // for the next try
      else this.#log.error({ err: error, request_id: job.requestId }, 'prefill failed');
      this.#leases.end(lease, job.signal.aborted ? 'cancelled' : 'failed', error);
      job.fail(error);
    } finally {
      this.#computing -= length - start.positions;
    }
  }

  async #compute(job: Pending, start: PrefixSlot, lease: Lease): Promise<PrefillResult> {
    const started = performance.now();
    const { ids } = job.prompt;
    const wantsLogprobs = job.promptLogprobs >= 0;
    const promptLogprobs: (SampledToken | undefined)[] = wantsLogprobs ? [undefined] : [];
    let logits: Float32Array = new Float32Array(0);
    let [chunks, pausedMs] = [0, 0];
    if (start.copyFrom === undefined && start.positions > 0) lease.advance(start.positions);
    for (let past = start.positions, end: number; past < ids.length; past = end) {
      const size = wantsLogprobs ? Math.min(this.#options.chunkTokens(), LOGPROB_CHUNK) : this.#options.chunkTokens();
      // The last token goes along: in a run of its own it is rounded otherwise (kv/prefix.ts).
      end = ids.length - past <= size + 1 ? ids.length : past + size;
      const last = end === ids.length;
      const logitRows = wantsLogprobs ? Array.from({ length: end - past }, (_, i) => i) : last ? [end - past - 1] : [];
      const copyFrom = chunks === 0 ? start.copyFrom?.slot : undefined;
      const soft = softWithin(job.prompt.soft, past, end);
      const underWay = new AbandonableChunk({ chain: job.chain, past, end, signal: job.signal });
      this.#underWay = underWay;
      try {
        const chunk = { slot: lease.slot.index, past, ids: ids.subarray(past, end), soft, logitRows, copyFrom };
        logits = await this.#engine.chunk(chunk, underWay.signal);
      } finally {
        this.#underWay = undefined;
        if (chunks++ === 0) start.copyFrom?.done();
      }
      lease.advance(end);
      job.signal.throwIfAborted(); // for the next try, what is computed counts
      if (wantsLogprobs) this.#promptLogprobs(job, logits, past, end, promptLogprobs);
      if (!last) pausedMs += await this.#runShorterFirst(job, ids.length - end);
    }
    const lastRow = logits.subarray(logits.length - this.#engine.vocabSize);
    const tokens = job.choices.map((sampling) => firstToken(lastRow, sampling));
    this.#prefixes.add(lease.slot.index, job.chain, ids.length);
    this.#leases.complete(
      lease,
      tokens.map((token) => token.id),
    );
    const seconds = (performance.now() - started - pausedMs) / 1000;
    return { tokens, promptLogprobs, cachedTokens: start.positions, seconds, chunks };
  }

  /** Computes those that go before the rest of this one, as long as there are slots; returns how long it took, in ms. */
  async #runShorterFirst(job: Pending, tokens: number): Promise<number> {
    const sinceMs = performance.now();
    const rest = { tokens, queuedAtMs: job.queuedAtMs };
    while (this.#queue.precedes(rest) && !this.#engine.pool.contended) {
      const next = this.#take();
      if (next === undefined) break;
      await this.#serve(next.job, next.start);
      job.signal.throwIfAborted();
    }
    return performance.now() - sinceMs;
  }

  /** The logits of position i say how likely the token at i + 1 was. */
  #promptLogprobs(
    job: Pending,
    logits: Float32Array,
    past: number,
    end: number,
    into: (SampledToken | undefined)[],
  ): void {
    const vocab = this.#engine.vocabSize;
    for (let position = past; position < end && position + 1 < job.prompt.ids.length; position++) {
      const row = logits.subarray((position - past) * vocab, (position - past + 1) * vocab);
      into.push(promptLogprob(row, job.prompt.ids[position + 1] as number, job.promptLogprobs));
    }
  }
}

/** Position 0 of the output, or where the output that ends the prompt already goes on. */
const firstToken = (logits: Float32Array, sampling: Sampling) =>
  sample(logits, sampling, sampling.priorOutputIds.length, new OutputHistory(sampling.priorOutputIds));
