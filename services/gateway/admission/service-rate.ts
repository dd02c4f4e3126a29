/**
 * The rate at which the queue is served while it is not empty, in tokens per second over the last few grants. If it is
 * below the rate at which prefill can compute, decode is the bottleneck. Pure: the caller says what time it is.
 */

/** Factor by which earlier grants count less with each further grant. */
const MEMORY = 0.9;
/** Seconds of waiting that must have been measured before the rate means something. */
const ENOUGH_SECONDS = 0.5;

export class ServiceRate {
  #tokens = 0;
  #seconds = 0;
  #lastMs = -Infinity;

  /** @param sinceMs when the prompt began to wait: time in which nobody waited does not count. */
  served(tokens: number, sinceMs: number, nowMs: number): void {
    this.#tokens = this.#tokens * MEMORY + tokens;
    this.#seconds = this.#seconds * MEMORY + (nowMs - Math.max(sinceMs, this.#lastMs)) / 1000;
    this.#lastMs = nowMs;
  }

  /** Nobody waits: the rate measured so far says nothing about the prompts that come next. */
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
