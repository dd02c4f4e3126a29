/** Requests in flight: a limit on their number, and the signal that ends each, with the reason why. */
import { ServingError } from '../../lib/process/errors.ts';
import { metrics } from '../../lib/process/metrics.ts';
import type { AdmissionConfig } from './settings.ts';

export interface InflightOptions extends Pick<AdmissionConfig, 'maxInflight' | 'requestTimeoutMs'> {
  /** A tenant's share of the places, relative to the others'; 1 for all where not given. */
  readonly weightOf?: (tenant: string) => number;
  /** Once aborted, nothing new is taken in; requests that run go on. */
  readonly draining: AbortSignal;
}

export interface InflightRequest {
  /** Time budget of the request, in ms; the largest where not given. */
  readonly timeoutMs?: number | undefined;
  /**
   * One editor window: the latest request of a session supersedes the one before. Names of two tenants differ.
   */
  readonly session?: string | undefined;
  readonly tenant?: string;
  /** Most requests of the tenant in flight; undefined where it has no limit of its own. */
  readonly maxInflight?: number | undefined;
}

/** Work in flight, of any kind. */
export interface TrackedWork {
  /** Aborted with the reason why it must end: client_gone, deadline_exceeded, superseded, draining. */
  readonly signal: AbortSignal;
  abort(reason: ServingError): void;
  /** The work is over. Calling it twice is harmless. */
  release(): void;
}

/** A completion's place among those in flight. */
export interface InflightPlace extends TrackedWork {
  /** Time at which its budget is spent, in ms of the monotonic clock. */
  readonly deadlineMs: number;
}

export class InflightRequests {
  readonly #options: InflightOptions;
  /** Completions, each with its tenant. */
  readonly #running = new Map<AbortController, string>();
  /** Uploads and removals. They take no place here: the indexer limits them. */
  readonly #others = new Set<AbortController>();
  readonly #sessions = new Map<string, AbortController>();
  #whenIdle: (() => void)[] = [];

  constructor(options: InflightOptions) {
    this.#options = options;
  }

  /** @throws ServingError draining, saturated */
  enter({ timeoutMs, session, tenant = '', maxInflight: tenantLimit }: InflightRequest = {}): InflightPlace {
    const { maxInflight, requestTimeoutMs, draining } = this.#options;
    draining.throwIfAborted();
    const earlier = session === undefined ? undefined : this.#sessions.get(session);
    // Neither requests that were aborted, which are about to end, nor the one that it supersedes may keep it out.
    const inFlight = [...this.#running].filter(([other]) => !other.signal.aborted && other !== earlier);
    const own = inFlight.filter(([, other]) => other === tenant).length;
    if (tenantLimit !== undefined && own >= tenantLimit) {
      throw new ServingError('quota_exceeded', `${tenantLimit} requests of tenant ${tenant} are in flight`, {
        retryAfterSeconds: 1,
        limit: 'max-inflight',
      });
    }
    // A tenant that has less than its share is not kept out by tenants that have more, until there are twice as many
    // requests: otherwise each of many tenants, one after the other, would add its share to what is there.
    const full = inFlight.length >= maxInflight;
    if (full && (inFlight.length >= 2 * maxInflight || own >= this.#shareOf(tenant, inFlight))) {
      throw new ServingError('saturated', `${maxInflight} requests are in flight (--max-inflight)`, {
        retryAfterSeconds: 1,
        limit: 'max-inflight',
      });
    }
    // Supersede last: if the new request were refused, both would be lost.
    earlier?.abort(new ServingError('superseded', 'a newer request of the same session came'));
    const controller = new AbortController();
    const budgetMs = Math.min(timeoutMs ?? requestTimeoutMs, requestTimeoutMs);
    const deadline = setTimeout(() => {
      controller.abort(new ServingError('deadline_exceeded', `the request took longer than ${budgetMs} ms`));
    }, budgetMs);
    this.#running.set(controller, tenant);
    if (session !== undefined) this.#sessions.set(session, controller);
    metrics.inflight.set(this.#running.size);
    return {
      signal: controller.signal,
      deadlineMs: performance.now() + budgetMs,
      abort: (reason) => controller.abort(reason),
      release: () => {
        clearTimeout(deadline);
        if (session !== undefined && this.#sessions.get(session) === controller) this.#sessions.delete(session);
        this.#running.delete(controller);
        metrics.inflight.set(this.#running.size);
        this.#resolveIfIdle();
      },
    };
  }

  #shareOf(tenant: string, inFlight: readonly (readonly [AbortController, string])[]): number {
    const { maxInflight, weightOf = () => 1 } = this.#options;
    const tenants = new Set([tenant, ...inFlight.map(([, other]) => other)]);
    const weights = [...tenants].reduce((sum, each) => sum + weightOf(each), 0);
    return (maxInflight * weightOf(tenant)) / weights;
  }

  /**
   * Lets in work that is not a completion: it takes no place and has no budget.
   * @throws ServingError draining
   */
  track(): TrackedWork {
    this.#options.draining.throwIfAborted();
    const controller = new AbortController();
    this.#others.add(controller);
    return {
      signal: controller.signal,
      abort: (reason) => controller.abort(reason),
      release: () => {
        this.#others.delete(controller);
        this.#resolveIfIdle();
      },
    };
  }

  /** Waits until nothing is in flight; work that is still in flight after `timeoutMs` is aborted. */
  async drain(timeoutMs: number): Promise<void> {
    if (this.#idle) return;
    const idle = new Promise<void>((resolve) => this.#whenIdle.push(resolve));
    const timer = setTimeout(() => {
      const reason = new ServingError('draining', 'the gateway is shutting down and the request took too long');
      for (const controller of [...this.#running.keys(), ...this.#others]) controller.abort(reason);
    }, timeoutMs);
    await idle;
    clearTimeout(timer);
  }

  get #idle(): boolean {
    return this.#running.size + this.#others.size === 0;
  }

  #resolveIfIdle(): void {
    if (this.#idle) for (const resolve of this.#whenIdle.splice(0)) resolve();
  }
}
