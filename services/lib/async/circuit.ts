/**
 * A circuit breaker, for a worker or a store that can be reached and yet fails the work that it is given. It opens
 * after some failures in a row: then nothing is given for a while, and after that one piece of work at a time, until
 * one succeeds. Pure: the caller says what time it is.
 */

/** Failures in a row that open it. */
const FAILURES = 3;
/** Failures within this time count as one, in ms: one fault fails a whole batch, or all readers of a KV cache. */
const AT_ONCE_MS = 100;
/** First pause, in ms; each further failure doubles it. */
const FIRST_MS = 500;
/** Longest pause, in ms: shorter than clients keep on retrying. */
const LONGEST_MS = 15_000;

export class CircuitBreaker {
  #failures = 0;
  #failedAtMs = -Infinity;
  #refusesUntilMs = 0;

  /** Whether work may be given now. */
  allows(nowMs: number): boolean {
    return nowMs >= this.#refusesUntilMs;
  }

  get open(): boolean {
    return this.#failures >= FAILURES;
  }

  /** Work was given. While the breaker is open, the next work has to wait for the outcome of this. */
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
