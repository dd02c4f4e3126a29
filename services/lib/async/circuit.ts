/**
 * A circuit breaker of one worker: one that answers questions and yet fails what it is given is left alone after some
 * failures in a row, then tried again, one request at a time. Pure: the caller says what time it is.
 */

/** Failures in a row that open it. */
const FAILURES = 3;
/** However many calls one failure catches, a batch or the readers of one KV cache, it is one. */
const AT_ONCE_MS = 100;
const FIRST_MS = 500;
/** Shorter than clients keep on retrying. */
const LONGEST_MS = 15_000;

export class CircuitBreaker {
  #failures = 0;
  #failedAtMs = -Infinity;
  #refusesUntilMs = 0;

  /** Whether work may be given. */
  allows(nowMs: number): boolean {
    return nowMs >= this.#refusesUntilMs;
  }

  get open(): boolean {
    return this.#failures >= FAILURES;
  }

  /** Work was given: while it is open, the next has to wait for what comes of this. */
  tried(nowMs: number): void {
    if (this.open) this.#refusesUntilMs = nowMs + this.#pauseMs;
  }

  failed(nowMs: number): void {
    if (nowMs - this.#failedAtMs < AT_ONCE_MS) return;
    this.#failedAtMs = nowMs;
    this.#failures++;
    if (this.open) this.#refusesUntilMs = nowMs + this.#pauseMs;
  }

  succeeded(): void {
    this.#failures = 0;
    this.#refusesUntilMs = 0;
  }

  get #pauseMs(): number {
    return Math.min(FIRST_MS * 2 ** (this.#failures - FAILURES), LONGEST_MS);
  }
}
