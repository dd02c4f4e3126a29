/**
 * Prompts that wait, bounded by their tokens: what waits is what the newcomer will wait for. A place is reserved at the
 * moment of the check, so that a burst cannot pass it together.
 */
import { ServingError } from '../lib/process/errors.ts';
import { metrics } from '../lib/process/metrics.ts';

export interface Waiting {
  readonly tokens: number;
}

export class PromptQueue<J extends Waiting> {
  readonly #limit: number;
  readonly #jobs: J[] = [];
  #tokens = 0;
  /** Tokens computed per second, smoothed; 0 before the first prompt. */
  #rate = 0;

  /** @param limit tokens that may wait. */
  constructor(limit: number) {
    this.#limit = limit;
  }

  get tokens(): number {
    return this.#tokens;
  }

  get length(): number {
    return this.#jobs.length;
  }

  get rate(): number {
    return this.#rate;
  }

  /**
   * Takes a prompt in. An empty queue takes any one prompt, whatever its length.
   * @throws ServingError saturated, with the time that the backlog takes to compute.
   */
  add(job: J): void {
    if (this.#tokens > 0 && this.#tokens + job.tokens > this.#limit) {
      throw new ServingError(
        'saturated',
        `${this.#tokens} prompt tokens wait, ${job.tokens} more would exceed --queue-tokens ${this.#limit}`,
        { retryAfterSeconds: this.#rate > 0 ? Math.max(1, Math.ceil(this.#tokens / this.#rate)) : 1 },
      );
    }
    this.#jobs.push(job);
    this.#count(job.tokens);
  }

  /** First in, first out. */
  take(): J | undefined {
    const job = this.#jobs.shift();
    if (job) this.#count(-job.tokens);
    return job;
  }

  /** Takes out a prompt that nobody wants any more; false when it was not waiting. */
  remove(job: J): boolean {
    const index = this.#jobs.indexOf(job);
    if (index < 0) return false;
    this.#jobs.splice(index, 1);
    this.#count(-job.tokens);
    return true;
  }

  /** Notes how fast a prompt was computed. */
  measured(tokens: number, seconds: number): void {
    const rate = tokens / Math.max(seconds, 1e-6);
    this.#rate = this.#rate === 0 ? rate : 0.8 * this.#rate + 0.2 * rate;
  }

  #count(tokens: number): void {
    this.#tokens += tokens;
    metrics.waiting.set(this.#jobs.length);
    metrics.waitingTokens.set(this.#tokens);
  }
}
