/**
 * Decides which prompt is computed when. Prompts are computed one after another; between two chunks of a prompt a
 * shorter one of another tenant may pass it, and with shortest-first any shorter one. A prompt waits in the queue until
 * a slot is free and gets a lease on it at once, so that its KV can be pulled while later chunks still compute. The
 * beginning that it shares with an earlier prompt is not computed again.
 */
import { Deferred } from '../lib/async/deferred.ts';
import type { KvDisk } from '../lib/kv/disk/kv-disk.ts';
import { BLOCK_TOKENS, chainOf, type PrefixCache, type PrefixSlot, type PromptChain } from '../lib/kv/prefix.ts';
import type { Logger } from '../lib/process/log.ts';
import { metrics } from '../lib/process/metrics.ts';
import { tenantOfSalt } from '../lib/request/cache-salt.ts';
import { cachedTokens, restoredStart } from './kv-on-disk.ts';
import type { Lease, LeaseTable } from './leases.ts';
import {
  type HashedJob,
  type PrefillJob,
  type PrefillResult,
  PromptComputer,
  type PromptEngine,
} from './prompt-computation.ts';
import type { PromptQueue } from './prompt-queue.ts';

/** The prompt has its slot. */
interface AcceptedPrompt {
  readonly lease: Lease;
  readonly queueSeconds: number;
}

/** A job in the worker's hands. Both promises reject with the reason when it fails or is aborted. */
export interface PrefillTicket {
  readonly accepted: Promise<AcceptedPrompt>;
  readonly done: Promise<PrefillResult>;
}

export interface QueuedJob extends HashedJob {
  /** Tokens to compute, as far as could be told when the job was submitted. */
  readonly tokens: number;
  /** Submitted at, in ms of the monotonic clock. */
  readonly queuedAtMs: number;
  accept(value: AcceptedPrompt): void;
  finish(result: PrefillResult): void;
  fail(reason: unknown): void;
}

/** A job that has left the queue with a slot. */
interface StartedJob {
  readonly job: QueuedJob;
  readonly start: PrefixSlot;
}

export interface PrefillWorkerOptions {
  /** Tokens of the next chunk. */
  readonly chunkTokens: () => number;
  /** Called when nothing waits or computes. */
  readonly onIdle: () => void;
  /** Whether something other than prompts wants the engine. */
  readonly engineContended: () => boolean;
  /** Prompts whose KV is on disk; undefined where none is kept there. */
  readonly disk?: KvDisk | undefined;
}

export class PrefillWorker {
  readonly #engine: PromptEngine;
  readonly #computer: PromptComputer;
  readonly #queue: PromptQueue<QueuedJob>;
  readonly #leases: LeaseTable;
  readonly #prefixes: PrefixCache;
  readonly #options: PrefillWorkerOptions;
  readonly #log: Logger;
  #running = false;
  /** Whether the first prompt of the queue waits for a slot in the pool's own line. */
  #awaitsSlot = false;
  #computing = 0;

  constructor(
    engine: PromptEngine,
    queue: PromptQueue<QueuedJob>,
    leases: LeaseTable,
    prefixes: PrefixCache,
    options: PrefillWorkerOptions,
    log: Logger,
  ) {
    this.#engine = engine;
    this.#computer = new PromptComputer(engine, options.chunkTokens);
    this.#queue = queue;
    this.#leases = leases;
    this.#prefixes = prefixes;
    this.#options = options;
    this.#log = log;
  }

  /** @throws ServingError saturated. */
  submit(job: PrefillJob): PrefillTicket {
    job.signal.throwIfAborted();
    const accepted = new Deferred<AcceptedPrompt>();
    const done = new Deferred<PrefillResult>();
    const chain = reusableChain(job);
    const { length } = job.prompt.ids;
    const inMemory = this.#prefixes.matchedTokens(chain, length);
    const queued: QueuedJob = {
      ...job,
      chain,
      tokens: length - cachedTokens(this.#options.disk, { ...job, chain }, inMemory, this.#queue.rate),
      queuedAtMs: performance.now(),
      accept: accepted.resolve,
      finish: done.resolve,
      fail: (reason) => {
        accepted.reject(reason);
        done.reject(reason);
      },
    };
    this.#queue.add(queued);
    this.#reconsiderChunk();
    const leave = () => {
      if (this.#queue.remove(queued)) queued.fail(job.signal.reason);
    };
    job.signal.addEventListener('abort', leave, { once: true });
    done.promise.finally(() => job.signal.removeEventListener('abort', leave)).catch(() => {});
    if (!this.#running && !this.#awaitsSlot) void this.#run(this.#next());
    return { accepted: accepted.promise, done: done.promise };
  }

  /** Prompt tokens of the jobs that compute now, without those that are reused. */
  get computing(): number {
    return this.#computing;
  }

  /** A caller hung up or a prompt came: a chunk that no caller wants may no longer be worth finishing. */
  #reconsiderChunk(): void {
    this.#computer.reconsider(this.#queue.first, this.#options.engineContended(), this.#queue.rate);
  }

  async #run(first: StartedJob | undefined): Promise<void> {
    this.#running = true;
    for (let next = first; next !== undefined; next = this.#next()) await this.#serve(next.job, next.start);
    // Nothing was awaited since the last look at the queue: a prompt that comes from here on starts a new run.
    this.#running = false;
    if (this.#queue.length === 0) this.#options.onIdle();
  }

  /** The first prompt of the queue, with a slot. Where no slot is free, the prompt joins the line of all who wait. */
  #next(): StartedJob | undefined {
    const { pool } = this.#engine;
    const next = pool.contended ? undefined : this.#take();
    const waiting = next === undefined ? this.#queue.first : undefined;
    if (waiting) {
      this.#awaitsSlot = true;
      pool.wait(() => this.#takeTurn(), waiting.queuedAtMs);
    }
    return next;
  }

  /** Called when it is our turn for a slot; true leaves the line. */
  #takeTurn(): boolean {
    const next = this.#take();
    if (next === undefined && this.#queue.length > 0) return false;
    this.#awaitsSlot = false;
    if (next) void this.#run(next);
    return true;
  }

  #take(job = this.#queue.first): StartedJob | undefined {
    const start =
      job && this.#prefixes.reserve(job.chain, job.prompt.ids.length, tenantOfSalt(job.cacheSalt), job.requestId);
    if (job === undefined || start === undefined) return undefined;
    this.#queue.remove(job);
    return { job, start };
  }

  /** Never rejects: failures go to the job. */
  async #serve(job: QueuedJob, reserved: PrefixSlot): Promise<void> {
    const { length } = job.prompt.ids;
    const lease = this.#leases.open(reserved.slot, length, job.readers);
    // The slot of a prompt that computes is free once nothing writes to it any more: after the current chunk at the
    // latest.
    const cancel = () => {
      if (lease.isComplete) this.#leases.end(lease, 'cancelled');
      else this.#reconsiderChunk();
    };
    job.signal.addEventListener('abort', cancel, { once: true });
    lease.released.catch(() => {}).then(() => job.signal.removeEventListener('abort', cancel));
    this.#computing += length - reserved.positions;
    metrics.running.inc();
    try {
      const queueSeconds = (performance.now() - job.queuedAtMs) / 1000;
      if (mayReuse(job)) metrics.prefixQueries.inc(length);
      job.accept({ lease, queueSeconds });
      const { start, seconds: restoreSeconds } = await this.#restore(job, reserved, lease);
      metrics.prefixHits.inc(start.positions);
      const computed = await this.#computer.compute(job, start, lease, (rest) => this.#runShorter(job, rest));
      const result = { ...computed, seconds: restoreSeconds + computed.seconds };
      job.signal.throwIfAborted(); // `cancel` leaves the end of an incomplete lease to us
      this.#prefixes.add(lease.slot.index, job.chain, length, tenantOfSalt(job.cacheSalt), job.requestId);
      const firstTokenIds = result.tokens.map((token) => token.id);
      this.#leases.complete(lease, firstTokenIds);
      this.#queue.measured(length - result.cachedTokens, computed.seconds);
      metrics.prefillTime.observe(result.seconds);
      this.#log.debug(
        {
          request_id: job.requestId,
          trace_id: job.traceId,
          prompt_tokens: length,
          cached_tokens: result.cachedTokens,
          restore_ms: Math.round(restoreSeconds * 1000),
          queue_ms: Math.round(queueSeconds * 1000),
          prefill_ms: Math.round(result.seconds * 1000),
        },
        'prompt computed',
      );
      job.finish(result);
    } catch (error) {
      this.#abandon(job, lease, error);
    } finally {
      this.#computing -= length - reserved.positions;
      metrics.running.dec();
    }
  }

  /** Reads what of the prompt is on disk. @throws the reason of the job's signal. */
  async #restore(job: QueuedJob, reserved: PrefixSlot, lease: Lease): Promise<{ start: PrefixSlot; seconds: number }> {
    const { disk } = this.#options;
    if (disk === undefined) return { start: reserved, seconds: 0 };
    const startedMs = performance.now();
    const start = await restoredStart(disk, job, reserved, this.#queue.rate);
    if (start === reserved) return { start, seconds: 0 };
    if (job.signal.aborted) lease.advance(start.positions); // the next try can start from these
    job.signal.throwIfAborted();
    job.onRestored?.(start.positions);
    return { start, seconds: (performance.now() - startedMs) / 1000 };
  }

  #abandon(job: QueuedJob, lease: Lease, error: unknown): void {
    if (job.signal.aborted) {
      // The next try can start from these.
      this.#prefixes.add(lease.slot.index, job.chain, lease.computed, tenantOfSalt(job.cacheSalt), job.requestId);
      this.#leases.end(lease, 'cancelled', error);
    } else {
      this.#log.error({ err: error, request_id: job.requestId, trace_id: job.traceId }, 'prefill failed');
      this.#leases.end(lease, 'failed', error);
    }
    job.fail(error);
  }

  /** Computes the prompts that go before the rest of this one, as long as there are slots. */
  async #runShorter(job: QueuedJob, remainingTokens: number): Promise<void> {
    const rest = { tokens: remainingTokens, queuedAtMs: job.queuedAtMs };
    const tenant = tenantOfSalt(job.cacheSalt);
    const isOther = (other: QueuedJob) => tenantOfSalt(other.cacheSalt) !== tenant;
    for (;;) {
      const shorter = this.#engine.pool.contended ? undefined : this.#queue.before(rest, isOther);
      const next = shorter && this.#take(shorter);
      if (next === undefined) break;
      await this.#serve(next.job, next.start);
      job.signal.throwIfAborted();
    }
  }
}

/** Whether something of the prompt may come from earlier ones: not where the logprobs of all its tokens are wanted. */
const mayReuse = ({ promptLogprobs, promptLogprobsFrom }: PrefillJob) => promptLogprobs < 0 || promptLogprobsFrom > 0;

/** The blocks that need not be computed: of a prompt whose logprobs are wanted, those before the first logits. */
function reusableChain(job: PrefillJob): PromptChain {
  if (!mayReuse(job)) return [];
  const chain = chainOf(job.prompt, job.cacheSalt);
  if (job.promptLogprobs < 0) return chain;
  return chain.slice(0, Math.floor((job.promptLogprobsFrom - 1) / BLOCK_TOKENS));
}
