/** What is in work, how many completions of it, and the signal that ends each: with the reason why. */
import { ServingError } from '../../lib/process/errors.ts';
import { metrics } from '../../lib/process/metrics.ts';
import type { AdmissionConfig } from './settings.ts';

export interface InflightOptions extends Pick<AdmissionConfig, 'maxInflight' | 'requestTimeoutMs'> {
  /** A tenant's share of them, relative to the others'. */
  readonly weightOf?: (tenant: string) => number;
  /** Once aborted, nothing new is admitted; what runs goes on. */
  readonly draining: AbortSignal;
}

export interface InflightRequest {
  /** Budget of the request, in ms. */
  readonly timeoutMs?: number | undefined;
  /** Of what a person does at one place: the latest request supersedes those before. Names of two tenants differ. */
  readonly session?: string | undefined;
  readonly tenant?: string;
  /** Of the tenant's requests. */
  readonly maxInflight?: number | undefined;
}

/** What is in work, of whatever kind. */
export interface Attended {
  /** Aborted with the reason why it must end: client_gone, deadline_exceeded, superseded, draining. */
  readonly signal: AbortSignal;
  abort(reason: ServingError): void;
  /** It is over; twice is harmless. */
  release(): void;
}

/** A request's place among those in work. */
export interface Admitted extends Attended {
  /** When its budget is spent, in ms of the monotonic clock. */
  readonly deadlineMs: number;
}

export class InflightRequests {
  readonly #options: InflightOptions;
  /** Whose each is. */
  readonly #running = new Map<AbortController, string>();
  /** Uploads and removals: bounded by the indexer, and by limits of their own. */
  readonly #others = new Set<AbortController>();
  readonly #sessions = new Map<string, AbortController>();
  #whenIdle: (() => void)[] = [];

  constructor(options: InflightOptions) {
    this.#options = options;
  }

  /** @throws ServingError draining, saturated */
  admit({ timeoutMs, session, tenant = '', maxInflight: ofTenant }: InflightRequest = {}): Admitted {
    const { maxInflight, requestTimeoutMs, draining } = this.#options;
    draining.throwIfAborted();
    const earlier = session === undefined ? undefined : this.#sessions.get(session);
    // Neither those that were aborted, which are on their way out, nor whom it supersedes may keep it out.
    const inWork = [...this.#running].filter(([other]) => !other.signal.aborted && other !== earlier);
    const own = inWork.filter(([, other]) => other === tenant).length;
    if (ofTenant !== undefined && own >= ofTenant) {
      throw new ServingError('quota_exceeded', `${ofTenant} requests of tenant ${tenant} are in work`, {
        retryAfterSeconds: 1,
        limit: 'max-inflight',
      });
    }
    // A tenant that has less than its share is not kept out by those who have more, until there are twice as many: else each
    // of many tenants, come one after the other, would add its share to what is there.
    const full = inWork.length >= maxInflight;
    if (full && (inWork.length >= 2 * maxInflight || own >= this.#shareOf(tenant, inWork))) {
      throw new ServingError('saturated', `${maxInflight} requests are in work (--max-inflight)`, {
        retryAfterSeconds: 1,
        limit: 'max-inflight',
      });
    }
    // Not before it is let in: else both would be lost.
    earlier?.abort(new ServingError('superseded', 'a newer request of the same session came'));
    const controller = new AbortController();
    const budgetMs = Math.min(timeoutMs ?? requestTimeoutMs, requestTimeoutMs);
    const deadline = setTimeout(() => {
      controller.abort(new ServingError('deadline_exceeded', `the request took longer than ${budgetMs} ms`));
    }, budgetMs);
    this.#running.set(controller, tenant);
    if (session !== undefined) this.#sessions.set(session, controller);
    metrics.running.set(this.#running.size);
    return {
      signal: controller.signal,
      deadlineMs: performance.now() + budgetMs,
      abort: (reason) => controller.abort(reason),
      release: () => {
        clearTimeout(deadline);
        if (session !== undefined && this.#sessions.get(session) === controller) this.#sessions.delete(session);
        this.#running.delete(controller);
        metrics.running.set(this.#running.size);
        this.#settle();
      },
    };
  }

  #shareOf(tenant: string, inWork: readonly (readonly [AbortController, string])[]): number {
    const { maxInflight, weightOf = () => 1 } = this.#options;
    const tenants = new Set([tenant, ...inWork.map(([, other]) => other)]);
    const weights = [...tenants].reduce((sum, each) => sum + weightOf(each), 0);
    return (maxInflight * weightOf(tenant)) / weights;
  }

  /** As {@link admit}, for what is no completion: it takes no place and has no budget. @throws ServingError draining */
  attend(): Attended {
    this.#options.draining.throwIfAborted();
    const controller = new AbortController();
    this.#others.add(controller);
    return {
      signal: controller.signal,
      abort: (reason) => controller.abort(reason),
      release: () => {
        this.#others.delete(controller);
        this.#settle();
      },
    };
  }

  /** Waits until nothing is in work; what still is after `timeoutMs` is aborted. */
  async drain(timeoutMs: number): Promise<void> {
    if (this.#idle) return;
    const idle = new Promise<void>((resolve) => this.#whenIdle.push(resolve));
    const patience = setTimeout(() => {
      const reason = new ServingError('draining', 'the gateway is shutting down and the request took too long');
      for (const controller of [...this.#running.keys(), ...this.#others]) controller.abort(reason);
    }, timeoutMs);
    await idle;
    clearTimeout(patience);
  }

  get #idle(): boolean {
    return this.#running.size + this.#others.size === 0;
  }

  #settle(): void {
    if (this.#idle) for (const resolve of this.#whenIdle.splice(0)) resolve();
  }
}
