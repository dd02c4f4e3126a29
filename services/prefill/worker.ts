/**
 * Computes prompts, one after another, chunk by chunk. A prompt waits in the queue until a slot is free, gets a lease on
 * it at once (so that its KV can be pulled while later chunks still compute), and leaves its first token when done.
 */
import { OutputHistory, promptLogprob, sample } from '../lib/engine/sampler.ts';
import type { PromptChunk } from '../lib/engine/session.ts';
import type { KvPool, KvSlot } from '../lib/kv/pool.ts';
import type { Logger } from '../lib/process/log.ts';
import { metrics } from '../lib/process/metrics.ts';
import type { SampledToken, Sampling, TokenPrompt } from '../lib/request/sequence.ts';
import type { Lease, LeaseTable } from './leases.ts';
import type { PromptQueue } from './queue.ts';

/** What prefill needs of a DecoderSession. */
export interface PromptEngine {
  readonly pool: KvPool;
  readonly vocabSize: number;
  readonly hiddenSize: number;
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
  readonly signal: AbortSignal;
}

export interface PrefillResult {
  /** One per choice. */
  readonly tokens: readonly SampledToken[];
  /** One per prompt position; the first is undefined, since nothing predicts it. */
  readonly promptLogprobs: readonly (SampledToken | undefined)[];
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
  readonly tokens: number;
  readonly queuedAtMs: number;
  accept(value: { lease: Lease; queueSeconds: number }): void;
  finish(result: PrefillResult): void;
  fail(reason: unknown): void;
}

/** Prompt logprobs need the logits of every position; chunks of this many keep them small (vocab x 4 bytes each). */
const LOGPROB_CHUNK = 64;

export class PrefillWorker {
  readonly #engine: PromptEngine;
  readonly #queue: PromptQueue<Pending>;
  readonly #leases: LeaseTable;
  readonly #chunkTokens: number;
  readonly #log: Logger;
  #running = false;
  #computing = 0;

  constructor(engine: PromptEngine, queue: PromptQueue<Pending>, leases: LeaseTable, chunkTokens: number, log: Logger) {
    this.#engine = engine;
    this.#queue = queue;
    this.#leases = leases;
    this.#chunkTokens = chunkTokens;
    this.#log = log;
  }

  /** @throws ServingError saturated. */
  submit(job: PrefillJob): PrefillTicket {
    job.signal.throwIfAborted();
    let pending!: Pending;
    let done!: PrefillTicket['done'];
    const accepted = new Promise<{ lease: Lease; queueSeconds: number }>((accept, rejectAccepted) => {
      done = new Promise<PrefillResult>((finish, rejectDone) => {
        const fail = (reason: unknown) => {
          rejectAccepted(reason);
          rejectDone(reason);
        };
        pending = { ...job, tokens: job.prompt.ids.length, queuedAtMs: performance.now(), accept, finish, fail };
      });
    });
    // The caller awaits one after the other: a failure of both is not unhandled.
    accepted.catch(() => {});
    done.catch(() => {});
    this.#queue.add(pending);
    const leave = () => {
      if (this.#queue.remove(pending)) pending.fail(job.signal.reason);
    };
    job.signal.addEventListener('abort', leave, { once: true });
    done.finally(() => job.signal.removeEventListener('abort', leave)).catch(() => {});
    this.wake();
    return { accepted, done };
  }

  /** Prompt tokens that compute now. */
  get computing(): number {
    return this.#computing;
  }

  /** Looks for work: called when a prompt came or a slot became free. */
  wake(): void {
    if (!this.#running) void this.#run();
  }

  async #run(): Promise<void> {
    this.#running = true;
    for (let next = this.#next(); next !== undefined; next = this.#next()) await this.#serve(next.job, next.slot);
    // No await since the last look: whoever comes from here on wakes us.
    this.#running = false;
    if (this.#queue.length === 0 && this.#leases.size === 0) this.#engine.pool.assertConserved(0);
  }

  /** The first prompt that waits, with a slot for it; undefined when either is missing. */
  #next(): { job: Pending; slot: KvSlot } | undefined {
    if (this.#queue.length === 0) return undefined;
    const slot = this.#engine.pool.reserve();
    const job = slot && this.#queue.take();
    return job && { job, slot };
  }

  async #serve(job: Pending, slot: KvSlot): Promise<void> {
    const lease = this.#leases.open(slot, job.tokens, job.readers);
    // While it computes, the abort stops the chunk under way, and the slot is free when nothing writes to it any more.
    const cancel = () => {
      if (lease.isComplete) this.#leases.end(lease, 'cancelled');
    };
    job.signal.addEventListener('abort', cancel, { once: true });
    const forget = () => job.signal.removeEventListener('abort', cancel);
    lease.released.then(forget, forget);
    this.#computing = job.tokens;
    try {
      const queueSeconds = (performance.now() - job.queuedAtMs) / 1000;
      metrics.queueTime.observe(queueSeconds);
      job.accept({ lease, queueSeconds });
      const result = await this.#compute(job, lease);
      this.#queue.measured(job.tokens, result.seconds);
      metrics.prefillTime.observe(result.seconds);
      job.finish(result);
    } catch (error) {
      if (!job.signal.aborted) this.#log.error({ err: error, request_id: job.requestId }, 'prefill failed');
      this.#leases.end(lease, job.signal.aborted ? 'cancelled' : 'failed', error);
      job.fail(error);
    } finally {
      this.#computing = 0;
    }
  }

  async #compute(job: Pending, lease: Lease): Promise<PrefillResult> {
    const started = performance.now();
    const { ids } = job.prompt;
    const wantsLogprobs = job.promptLogprobs >= 0;
    const size = wantsLogprobs ? Math.min(this.#chunkTokens, LOGPROB_CHUNK) : this.#chunkTokens;
    const promptLogprobs: (SampledToken | undefined)[] = wantsLogprobs ? [undefined] : [];
    let logits = new Float32Array(0);
    let chunks = 0;
    for (let past = 0; past < ids.length; past += size) {
      const end = Math.min(past + size, ids.length);
      const last = end === ids.length;
      const logitRows = wantsLogprobs ? Array.from({ length: end - past }, (_, i) => i) : last ? [end - past - 1] : [];
      const chunk = { slot: lease.slot.index, past, ids: ids.subarray(past, end), soft: softWithin(job, past, end) };
      logits = (await this.#engine.chunk({ ...chunk, logitRows }, job.signal)) as Float32Array<ArrayBuffer>;
      job.signal.throwIfAborted(); // a run that ends as the abort comes does not say so
      lease.advance(end);
      chunks++;
      if (wantsLogprobs) this.#promptLogprobs(job, logits, past, end, promptLogprobs);
    }
    const vocab = this.#engine.vocabSize;
    const lastRow = logits.subarray(logits.length - vocab);
    const tokens = job.choices.map((sampling) => sample(lastRow, sampling, 0, new OutputHistory()));
    this.#leases.complete(
      lease,
      tokens.map((token) => token.id),
    );
    return { tokens, promptLogprobs, seconds: (performance.now() - started) / 1000, chunks };
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

/** The soft tokens of positions [past, end), relative to past. */
function softWithin(job: PrefillJob, past: number, end: number) {
  const { positions, vectors } = job.prompt.soft;
  const first = positions.findIndex((position) => position >= past);
  if (first < 0) return { positions: new Int32Array(0), vectors: new Float32Array(0) };
  let last = first;
  while (last < positions.length && (positions[last] as number) < end) last++;
  const hidden = vectors.length / positions.length;
  return {
    positions: positions.slice(first, last).map((position) => position - past),
    vectors: vectors.subarray(first * hidden, last * hidden),
  };
}
