/** How many requests are in work, and the signal that ends each of them: with the reason why. */
import { ServingError } from '../lib/process/errors.ts';
import { metrics } from '../lib/process/metrics.ts';

export interface AdmissionOptions {
  readonly maxInflight: number;
  /** Largest budget of a request, and that of those that name none, in ms. */
  readonly requestTimeoutMs: number;
  /** Once aborted, nothing new is admitted; what runs goes on. */
  readonly draining: AbortSignal;
}

export interface AdmissionRequest {
  /** Budget of the request, in ms. */
  readonly timeoutMs?: number | undefined;
  /** Of what a person does at one place: the latest request supersedes those before. Names of two tenants differ. */
  readonly session?: string | undefined;
  readonly tenant?: string;
  /** Of the tenant's requests. */
  readonly maxInflight?: number | undefined;
}

/** A request's place among those in work. */
export interface Admitted {
  /** Aborted with the reason why the request must end: client_gone, deadline_exceeded, superseded, draining. */
  readonly signal: AbortSignal;
  /** When its budget is spent, in ms of the monotonic clock. */
  readonly deadlineMs: number;
  abort(reason: ServingError): void;
  /** Gives the place back; twice is harmless. */
  release(): void;
}

export class Admission {
  readonly #options: AdmissionOptions;
  /** Whose each is. */
  readonly #running = new Map<AbortController, string>();
  readonly #sessions = new Map<string, AbortController>();
  #whenIdle: (() => void)[] = [];

  constructor(options: AdmissionOptions) {
    this.#options = options;
  }

  /** @throws ServingError draining, saturated */
  admit({ timeoutMs, session, tenant = '', maxInflight: ofTenant }: AdmissionRequest = {}): Admitted {
    const { maxInflight, requestTimeoutMs, draining } = this.#options;
    draining.throwIfAborted();
    const earlier = session === undefined ? undefined : this.#sessions.get(session);
    // Neither those that were aborted, which are on their way out, nor whom it supersedes may keep it out.
    const inWork = [...this.#running].filter(([other]) => !other.signal.aborted && other !== earlier);
    if (ofTenant !== undefined && inWork.filter(([, other]) => other === tenant).length >= ofTenant) {
      throw new ServingError('quota_exceeded', `${ofTenant} requests of tenant ${tenant} are in work`, {
        retryAfterSeconds: 1,
        knob: 'max_inflight',
      });
    }
    if (inWork.length >= maxInflight) {
      throw new ServingError('saturated', `${maxInflight} requests are in work (--max-inflight)`, {
        retryAfterSeconds: 1,
        knob: 'max-inflight',
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
        if (this.#running.size === 0) for (const resolve of this.#whenIdle.splice(0)) resolve();
      },
    };
  }

  /** Waits until nothing is in work; what still is after `timeoutMs` is aborted. */
  async drain(timeoutMs: number): Promise<void> {
    if (this.#running.size === 0) return;
    const idle = new Promise<void>((resolve) => this.#whenIdle.push(resolve));
    const patience = setTimeout(() => {
      const reason = new ServingError('draining', 'the gateway is shutting down and the request took too long');
      for (const controller of this.#running.keys()) controller.abort(reason);
    }, timeoutMs);
    await idle;
    clearTimeout(patience);
  }
}
