/**
 * A circuit breaker: a worker or a store that fails several times in a row is left alone for a while, then tried again,
 * one request at a time. It is pure: the caller says what time it is.
 */

export interface CircuitOptions {
  /** Failures in a row that open it. */
  readonly failures?: number;
  /**
   * Failures within this time of the last one that counted are the same one: a batch, or all readers of one KV cache.
   */
  readonly sameFailureMs?: number;
  /** Pause before the first trial. It doubles with every trial that fails. */
  readonly firstPauseMs?: number;
  /** Longest pause between trials: shorter than clients keep on retrying. */
  readonly longestPauseMs?: number;
}

export class CircuitBreaker {
  readonly #options: Required<CircuitOptions>;
  #failures = 0;
  #failedAtMs = -Infinity;
  #refusesUntilMs = 0;

  constructor(options: CircuitOptions = {}) {
    this.#options = { failures: 3, sameFailureMs: 100, firstPauseMs: 500, longestPauseMs: 15_000, ...options };
  }

  /** Whether work may be given. */
  allows(nowMs: number): boolean {
    return nowMs >= this.#refusesUntilMs;
  }

  get open(): boolean {
    return this.#failures >= this.#options.failures;
  }

  /** Work was given. While the breaker is open, the next work has to wait for the outcome of this. */
  tried(nowMs: number): void {
    if (this.open) this.#refusesUntilMs = nowMs + this.#pauseMs;
  }

  /**
   * @param beganMs when the work that failed had begun, if known: before the last failure that counted, it is the same
   *   one.
   */
  failed(nowMs: number, beganMs = nowMs - this.#options.sameFailureMs): void {
    if (beganMs < this.#failedAtMs) return;
    this.#failedAtMs = nowMs;
    this.#failures++;
    if (this.open) this.#refusesUntilMs = nowMs + this.#pauseMs;
  }

  succeeded(): void {
    this.#failures = 0;
    this.#refusesUntilMs = 0;
  }

  get #pauseMs(): number {
    const { failures, firstPauseMs, longestPauseMs } = this.#options;
    return Math.min(firstPauseMs * 2 ** (this.#failures - failures), longestPauseMs);
  }
}
