/**
 * How fast the queue is served while it is not empty: tokens per second over the last few grants. Slower than what prefill
 * can compute, it is decode that holds things up. Pure: the caller says what time it is.
 */

/** What an earlier grant still counts when the next one comes. */
const MEMORY = 0.9;
/** Seconds of waiting that have to be seen before the figure means something. */
const ENOUGH_SECONDS = 0.5;

export class ServiceRate {
  #tokens = 0;
  #seconds = 0;
  #lastMs = -Infinity;

  /** @param sinceMs when it began to wait: time in which nobody waited does not count. */
  served(tokens: number, sinceMs: number, nowMs: number): void {
    this.#tokens = this.#tokens * MEMORY + tokens;
    this.#seconds = this.#seconds * MEMORY + (nowMs - Math.max(sinceMs, this.#lastMs)) / 1000;
    this.#lastMs = nowMs;
  }

  /** Nobody waits: what was measured says nothing about what comes. */
  idle(): void {
    this.#tokens = 0;
    this.#seconds = 0;
  }

  /** The lower of both rates, in tokens per second; 0 where neither is known. */
  bounded(prefillRate: number): number {
    if (this.#seconds < ENOUGH_SECONDS) return prefillRate;
    const measured = this.#tokens / this.#seconds;
    return prefillRate > 0 ? Math.min(measured, prefillRate) : measured;
  }
}
