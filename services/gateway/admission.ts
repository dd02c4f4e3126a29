/** How many requests are in work, and the signal that ends each of them. */
import { ServingError } from '../lib/process/errors.ts';
import { metrics } from '../lib/process/metrics.ts';

export interface AdmissionOptions {
  readonly maxInflight: number;
  readonly requestTimeoutMs: number;
  /** Once aborted, nothing new is admitted; what runs goes on. */
  readonly draining: AbortSignal;
}

/** A request's place among those in work. */
export interface Admitted {
  /** Aborted with the reason why the request must end: client_gone, deadline_exceeded, draining. */
  readonly signal: AbortSignal;
  abort(reason: ServingError): void;
  /** Gives the place back; twice is harmless. */
  release(): void;
}

export class Admission {
  readonly #options: AdmissionOptions;
  readonly #running = new Set<AbortController>();
  #whenIdle: (() => void)[] = [];

  constructor(options: AdmissionOptions) {
    this.#options = options;
  }

  /** @throws ServingError draining, saturated */
  admit(): Admitted {
    const { maxInflight, requestTimeoutMs, draining } = this.#options;
    draining.throwIfAborted();
    if (this.#running.size >= maxInflight) {
      throw new ServingError('saturated', `${maxInflight} requests are in work (--max-inflight)`, {
        retryAfterSeconds: 1,
      });
    }
    const controller = new AbortController();
    const abort = (reason: ServingError) => controller.abort(reason);
    const deadline = setTimeout(() => {
      abort(new ServingError('deadline_exceeded', `the request took longer than ${requestTimeoutMs} ms`));
    }, requestTimeoutMs);
    this.#running.add(controller);
    metrics.running.set(this.#running.size);
    const release = () => {
      clearTimeout(deadline);
      this.#running.delete(controller);
      metrics.running.set(this.#running.size);
      if (this.#running.size === 0) for (const resolve of this.#whenIdle.splice(0)) resolve();
    };
    return { signal: controller.signal, abort, release };
  }

  /** Waits until nothing is in work; what still is after `timeoutMs` is aborted. */
  async drain(timeoutMs: number): Promise<void> {
    if (this.#running.size === 0) return;
    const idle = new Promise<void>((resolve) => this.#whenIdle.push(resolve));
    const patience = setTimeout(() => {
      const reason = new ServingError('draining', 'the gateway is shutting down and the request took too long');
      for (const controller of this.#running) controller.abort(reason);
    }, timeoutMs);
    await idle;
    clearTimeout(patience);
  }
}
