/**
 * Admission before work: a prompt waits here, in a fair order, until workers have room for its prefill and decode. The
 * queue is bounded by tokens, not by requests: it holds no more than can be computed within the target TTFT. A place is
 * reserved at the moment of the check, so that a burst cannot pass the check together.
 */
import { ServingError } from '../../lib/process/errors.ts';
import { metrics } from '../../lib/process/metrics.ts';
import type { WorkerPoolConfig } from '../workers/settings.ts';
import { type Placement, type PlacementRequest, tokensToCompute, type WorkerPool } from '../workers/worker-pool.ts';
import { FairQueue } from './fair-queue.ts';
import type { ServiceExchange } from './service-exchange.ts';
import { ServiceRate } from './service-rate.ts';
import type { AdmissionConfig } from './settings.ts';

/** One prompt asks for workers. */
export interface QueueRequest extends PlacementRequest {
  readonly tenant: string;
  /** A prompt with a lower value goes sooner, among the same tenant's. */
  readonly priority: number;
  /** Time that is left of the request's budget, in ms. */
  readonly remainingMs: number;
  /** Another prompt of the same request was admitted before it: it may wait as long as the request may. */
  readonly sibling?: boolean;
  /** It was admitted before and its worker was lost: it goes first, and waits longer for a worker to come up. */
  readonly isReplay: boolean;
}

export interface DispatcherOptions
  extends Pick<AdmissionConfig, 'targetTtftMs' | 'queueOrder'>,
    Pick<WorkerPoolConfig, 'connectTimeoutMs'> {
  readonly pool: Pick<
    WorkerPool,
    'place' | 'fits' | 'usable' | 'assertUsable' | 'prefillBacklog' | 'prefillTokensPerSecond' | 'onChange'
  >;
  /** A tenant's share of the service, relative to the others'; 1 for all where not given. */
  readonly weightOf?: (tenant: string) => number;
  /** Fairness with other gateways; undefined where there are none. */
  readonly exchange?: Pick<ServiceExchange, 'served' | 'yields'> | undefined;
  /** Monotonic clock, in ms. */
  readonly now?: () => number;
}

interface QueuedPrompt extends QueueRequest {
  readonly tokens: number;
  /** Tokens that the tenant is charged: the prompt and the output that may follow. */
  readonly cost: number;
  readonly queuedAtMs: number;
  grant(placement: Placement): void;
  refuse(error: unknown): void;
}

/** Longest Retry-After: a client that is told to wait longer goes elsewhere. */
const LONGEST_RETRY_SECONDS = 60;
/**
 * How long new prompts wait for a worker after the last one was lost, in ms. Longer than the gap of a rolling restart.
 */
const GRACE_MS = 2_000;

export class Dispatcher {
  readonly #options: DispatcherOptions;
  readonly #now: () => number;
  readonly #queue: FairQueue<QueuedPrompt>;
  /** Prompts that were admitted before and lost their worker, in the order in which they came back. */
  readonly #replays: QueuedPrompt[] = [];
  readonly #rate = new ServiceRate();
  /** Start of the outage that lasts now, on our clock; undefined while there are workers. */
  #outageSinceMs: number | undefined = -Infinity;
  /** End of the last outage, on our clock. */
  #upSinceMs = -Infinity;
  #outageTimers: NodeJS.Timeout[] = [];

  constructor(options: DispatcherOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
    this.#queue = new FairQueue(options.weightOf, options.queueOrder);
    options.pool.onChange(() => this.#pump());
  }

  /**
   * Resolves with workers for a prompt, when it is its turn; the caller releases them.
   * @throws ServingError saturated, no_worker; the signal's reason.
   */
  place(request: QueueRequest, signal: AbortSignal): Promise<Placement> {
    return new Promise((resolve, reject) => {
      signal.throwIfAborted();
      const settle = () => signal.removeEventListener('abort', leave);
      const prompt: QueuedPrompt = {
        ...request,
        tokens: request.promptTokens,
        cost: request.promptTokens + request.decodes * (request.positions - request.promptTokens),
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
      const leave = () => this.#leave(prompt, signal.reason);
      if (this.#now() - (this.#outageSinceMs ?? Infinity) >= this.#patienceMs(request.isReplay)) {
        this.#options.pool.assertUsable();
      }
      if (request.isReplay) this.#replays.push(prompt);
      else this.#admit(prompt);
      signal.addEventListener('abort', leave, { once: true });
      this.#pump();
    });
  }

  /**
   * Takes a new prompt into the queue. A queue that is full drops the last prompts of the tenant with the largest
   * share. An idle system takes any one prompt, whatever its length. A request has one waiting prompt at a time.
   * @throws ServingError saturated
   */
  #admit(newcomer: QueuedPrompt): void {
    const { pool, targetTtftMs } = this.#options;
    const rate = this.#rate.bounded(pool.prefillTokensPerSecond);
    const backlog = pool.prefillBacklog + this.#replays.reduce((sum, { tokens }) => sum + tokens, 0);
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
      // Waiting prompts count in full, cached tokens included: the measured rate may be that of decoding, which does
      // not depend on cached tokens.
      const own = tokensToCompute(newcomer);
      const before = backlog + this.#queue.ahead(newcomer);
      if (((before + own) / rate) * 1000 > remainingMs) throw refusal('timeout-ms', remainingMs);
      // The queue holds the tokens that can be computed within the target TTFT, less the backlog in front of it, plus
      // the newcomer's cached tokens: its `tokens` count them, but nobody computes them.
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

  /** Charges tenants for what other gateways served to them, and goes on: see {@link ServiceExchange}. */
  charge(costs: ReadonlyMap<string, number>): void {
    for (const [tenant, cost] of costs) this.#queue.charge(tenant, cost);
    this.#pump();
  }

  get waitingTenants(): ReadonlySet<string> {
    return new Set(this.#queue.entries.map(({ tenant }) => tenant));
  }

  /** Gives out workers as long as they have room. */
  #pump(): void {
    const { pool } = this.#options;
    this.#watchOutage();
    const { exchange } = this.#options;
    for (let next = this.#first; next !== undefined; next = this.#first) {
      if (!next.isReplay && exchange?.yields(next.tenant)) break;
      const placement = pool.place(next);
      if (placement === undefined) {
        if (!pool.usable || pool.fits(next)) break;
        // Its workers are gone and the new ones have smaller slots: waiting is of no use, and others wait behind it.
        const { positions } = next;
        this.#leave(next, new ServingError('no_worker', `no worker is left whose slots hold ${positions} tokens`));
        return;
      }
      if (next.isReplay) this.#replays.shift();
      else this.#queue.take();
      if (!next.isReplay) exchange?.served(next.tenant, next.cost);
      // Time during an outage does not count: nobody was served slowly, nobody was served at all.
      this.#rate.served(next.tokens, Math.max(next.queuedAtMs, this.#upSinceMs), this.#now());
      next.grant(placement);
    }
    if (this.#queue.size === 0) this.#rate.idle();
    this.#observe();
  }

  get #first(): QueuedPrompt | undefined {
    return this.#replays[0] ?? this.#queue.first;
  }

  #leave(prompt: QueuedPrompt, reason: unknown): void {
    const index = this.#replays.indexOf(prompt);
    if (index >= 0) this.#replays.splice(index, 1);
    else if (!this.#queue.remove(prompt)) return;
    prompt.refuse(reason);
    this.#pump(); // the prompt behind it may fit
  }

  /** How long a prompt waits for a worker to come up, in ms. */
  #patienceMs(isReplay: boolean): number {
    const { connectTimeoutMs } = this.#options;
    return isReplay ? connectTimeoutMs : Math.min(connectTimeoutMs, GRACE_MS);
  }

  /** Notices that an outage begins or ends. While it lasts, waiting prompts are refused when their patience is over. */
  #watchOutage(): void {
    const { usable } = this.#options.pool;
    if (usable === (this.#outageSinceMs === undefined)) return;
    this.#outageSinceMs = usable ? undefined : this.#now();
    if (usable) this.#upSinceMs = this.#now();
    for (const timer of this.#outageTimers.splice(0)) clearTimeout(timer);
    if (usable) return;
    for (const isReplay of [false, true]) {
      const timer = setTimeout(() => this.#giveUp(isReplay), this.#patienceMs(isReplay));
      this.#outageTimers.push(timer.unref());
    }
  }

  #giveUp(isReplay: boolean): void {
    const waiting = isReplay ? [...this.#replays] : this.#queue.entries;
    try {
      this.#options.pool.assertUsable();
    } catch (error) {
      for (const prompt of waiting) this.#leave(prompt, error);
    }
  }

  #observe(): void {
    metrics.waiting.set(this.#queue.size + this.#replays.length);
    metrics.waitingTokens.set(this.#queue.tokens);
  }
}
