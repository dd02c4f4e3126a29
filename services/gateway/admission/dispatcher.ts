/**
 * Admission before work: a prompt waits here, in a fair order, until workers have room for both of its halves. What may
 * wait is bounded by tokens, not by requests: no more than can be computed within the TTFT that is aimed at. A place is
 * reserved at the moment of the check, so that a burst cannot pass it together.
 */
import { ServingError } from '../../lib/process/errors.ts';
import { metrics } from '../../lib/process/metrics.ts';
import type { QueueOrder } from '../../lib/request/queue-order.ts';
import { type Placement, type PlacementRequest, tokensToCompute, type WorkerPool } from '../workers/worker-pool.ts';
import { FairQueue } from './fair-queue.ts';
import { ServiceRate } from './service-rate.ts';

/** One prompt's wish for workers. */
export interface QueueRequest extends PlacementRequest {
  readonly tenant: string;
  /** Lower goes sooner, among the same tenant's. */
  readonly priority: number;
  /** What is left of the request's budget, in ms. */
  readonly remainingMs: number;
  /** Another prompt of its request was admitted before it: it waits as long as the request may. */
  readonly sibling?: boolean;
  /** It was admitted before and its worker was lost: it goes first, and waits longer where there is no worker. */
  readonly isReplay: boolean;
}

export interface DispatcherOptions {
  readonly pool: Pick<
    WorkerPool,
    'place' | 'fits' | 'usable' | 'assertUsable' | 'prefillBacklog' | 'prefillTokensPerSecond' | 'onChange'
  >;
  /** Time to first token that a request may be made to wait for, in ms. */
  readonly targetTtftMs: number;
  /** After the last worker was lost: how long a prompt that it worked on waits for another one to come up, in ms. */
  readonly patienceMs: number;
  /** A tenant's share of the service, relative to the others'. */
  readonly weightOf?: (tenant: string) => number;
  /** Among prompts of the same tenant and priority. */
  readonly queueOrder?: QueueOrder;
  /** Monotonic clock, in ms. */
  readonly now?: () => number;
}

interface QueuedPrompt extends QueueRequest {
  readonly tokens: number;
  readonly cost: number;
  readonly queuedAtMs: number;
  grant(placement: Placement): void;
  refuse(error: unknown): void;
}

/** A client that is told to come back later than this would rather ask someone else. */
const LONGEST_RETRY_SECONDS = 60;
/** After the last worker was lost: how long new prompts wait. Workers that are restarted in turn leave no longer gap. */
const GRACE_MS = 2_000;

export class Dispatcher {
  readonly #options: DispatcherOptions;
  readonly #now: () => number;
  readonly #queue: FairQueue<QueuedPrompt>;
  /** Those that were admitted before, in order of coming. */
  readonly #again: QueuedPrompt[] = [];
  readonly #rate = new ServiceRate();
  /** Since when there is no worker, on our clock. */
  #outageMs: number | undefined = -Infinity;
  /** When the last outage ended. */
  #upSinceMs = -Infinity;
  #outageTimers: NodeJS.Timeout[] = [];

  constructor(options: DispatcherOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
    this.#queue = new FairQueue(options.weightOf, options.queueOrder);
    options.pool.onChange = () => this.#pump();
  }

  /**
   * Workers for a prompt, when it is its turn; the caller releases them.
   * @throws ServingError saturated, no_worker; the signal's reason.
   */
  place(wish: QueueRequest, signal: AbortSignal): Promise<Placement> {
    return new Promise((resolve, reject) => {
      signal.throwIfAborted();
      const settle = () => signal.removeEventListener('abort', leave);
      const waiter: QueuedPrompt = {
        ...wish,
        tokens: wish.promptTokens,
        cost: wish.promptTokens + wish.decodes * (wish.positions - wish.promptTokens),
        queuedAtMs: this.#now(),
        grant: (placement) => {
          settle();
          resolve(placement);
        },
        refuse: (error) => {
          settle();
          reject(error);
        },
      };
      const leave = () => this.#leave(waiter, signal.reason);
      if (this.#now() - (this.#outageMs ?? Infinity) >= this.#patienceMs(wish.isReplay)) {
        this.#options.pool.assertUsable();
      }
      if (wish.isReplay) this.#again.push(waiter);
      else this.#admit(waiter);
      signal.addEventListener('abort', leave, { once: true });
      this.#pump();
    });
  }

  /**
   * Takes a newcomer in, where need be at the cost of the tenant that holds most of the queue. When nothing waits or
   * computes any one prompt is taken, whatever its length; of one request, one waits at a time.
   * @throws ServingError saturated
   */
  #admit(newcomer: QueuedPrompt): void {
    const { pool, targetTtftMs } = this.#options;
    const rate = this.#rate.bounded(pool.prefillTokensPerSecond);
    const backlog = pool.prefillBacklog + this.#again.reduce((sum, { tokens }) => sum + tokens, 0);
    const ahead = this.#queue.tokens + backlog;
    if (ahead > 0 && rate > 0) {
      const refusal = (limit: string, ms: number) =>
        new ServingError(
          'saturated',
          `${ahead} prompt tokens wait or compute at ${Math.round(rate)}/s: the first token would come later than the ` +
            `${Math.round(ms)} ms of ${limit}`,
          { limit, retryAfterSeconds: Math.min(Math.max(1, Math.ceil(ahead / rate)), LONGEST_RETRY_SECONDS) },
        );
      const { remainingMs, tokens } = newcomer;
      // Of those that wait all counts: the rate at which they are served may be decode's, which knows no cached tokens.
      const own = tokensToCompute(newcomer);
      const before = backlog + this.#queue.ahead(newcomer);
      if (((before + own) / rate) * 1000 > remainingMs) throw refusal('timeout-ms', remainingMs);
      const limit = newcomer.sibling ? Infinity : (rate * targetTtftMs) / 1000 - backlog + tokens - own;
      const victims = this.#queue.victims(newcomer, limit);
      if (victims === undefined) throw refusal('target-ttft-ms', targetTtftMs);
      for (const victim of victims) {
        this.#queue.remove(victim);
        victim.refuse(refusal('target-ttft-ms', targetTtftMs));
      }
    }
    this.#queue.add(newcomer);
  }

  /** Gives out workers as long as they have room. */
  #pump(): void {
    const { pool } = this.#options;
    this.#watchOutage();
    for (let next = this.#first; next !== undefined; next = this.#first) {
      const placement = pool.place(next);
      if (placement === undefined) {
        if (!pool.usable || pool.fits(next)) break;
        // Its workers are gone and those that came hold less: nothing that it could wait for, and others wait behind it.
        const { positions } = next;
        this.#leave(next, new ServingError('no_worker', `no worker is left whose slots hold ${positions} tokens`));
        return;
      }
      if (next.isReplay) this.#again.shift();
      else this.#queue.take();
      // Of an outage nobody was served slowly.
      this.#rate.served(next.tokens, Math.max(next.queuedAtMs, this.#upSinceMs), this.#now());
      next.grant(placement);
    }
    if (this.#queue.size === 0) this.#rate.idle();
    this.#observe();
  }

  get #first(): QueuedPrompt | undefined {
    return this.#again[0] ?? this.#queue.first;
  }

  #leave(waiter: QueuedPrompt, reason: unknown): void {
    const index = this.#again.indexOf(waiter);
    if (index >= 0) this.#again.splice(index, 1);
    else if (!this.#queue.remove(waiter)) return;
    waiter.refuse(reason);
    this.#pump(); // what stood behind it may fit
  }

  #patienceMs(again: boolean): number {
    return again ? this.#options.patienceMs : Math.min(this.#options.patienceMs, GRACE_MS);
  }

  /** From the moment that there is no worker, those who wait do so for a while only. */
  #watchOutage(): void {
    const { usable } = this.#options.pool;
    if (usable === (this.#outageMs === undefined)) return;
    this.#outageMs = usable ? undefined : this.#now();
    if (usable) this.#upSinceMs = this.#now();
    for (const timer of this.#outageTimers.splice(0)) clearTimeout(timer);
    if (usable) return;
    for (const again of [false, true]) {
      const timer = setTimeout(() => this.#giveUp(again), this.#patienceMs(again));
      this.#outageTimers.push(timer.unref());
    }
  }

  #giveUp(again: boolean): void {
    const waiting = again ? [...this.#again] : this.#queue.entries;
    try {
      this.#options.pool.assertUsable();
    } catch (error) {
      for (const waiter of waiting) this.#leave(waiter, error);
    }
  }

  #observe(): void {
    metrics.waiting.set(this.#queue.size + this.#again.length);
    metrics.waitingTokens.set(this.#queue.tokens);
  }
}
