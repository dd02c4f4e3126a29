/**
 * Prompts that wait to be computed. The queue is bounded by their tokens, because these determine how long a new prompt
 * waits. The check and the reservation are one step, so that a burst of requests cannot pass the bound together.
 */
import { ServingError } from '../lib/process/errors.ts';
import { metrics, partOf } from '../lib/process/metrics.ts';
import { compareQueued, type Queued, type QueueOrder } from '../lib/request/queue-order.ts';

/** With fewer tokens, the fixed cost of a run (some ms) would be taken for the rate. */
const MEASURABLE_TOKENS = 64;

export class PromptQueue<J extends Queued> {
  readonly #limit: number;
  readonly #order: QueueOrder;
  readonly #jobs: J[] = [];
  readonly #waiting = partOf(metrics.waiting);
  #tokens = 0;
  /** Tokens computed per second, smoothed; 0 before the first prompt. */
  #rate = 0;

  /** @param limit tokens that may wait. */
  constructor(limit: number, order: QueueOrder = 'fifo') {
    this.#limit = limit;
    this.#order = order;
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
   * Adds a prompt. An empty queue accepts any one prompt, whatever its length.
   * @throws ServingError saturated, with the time that the backlog takes to compute.
   */
  add(job: J): void {
    if (this.#tokens > 0 && this.#tokens + job.tokens > this.#limit) {
      const backlogSeconds = this.#rate > 0 ? Math.ceil(this.#tokens / this.#rate) : 1;
      throw new ServingError(
        'saturated',
        `${this.#tokens} prompt tokens wait, ${job.tokens} more would exceed --queue-tokens ${this.#limit}`,
        { retryAfterSeconds: Math.max(1, backlogSeconds), limit: 'queue-tokens' },
      );
    }
    this.#jobs.push(job);
    this.#count(job.tokens);
  }

  /** The next prompt to be computed; undefined when none waits. */
  get first(): J | undefined {
    let best = this.#jobs[0];
    for (const job of this.#jobs) if (best && compareQueued(job, best, this.#order) < 0) best = job;
    return best;
  }

  /**
   * The prompt that is to be computed before the rest of one that computes now; undefined if there is none. With
   * shortest-first that is any shorter one; with fifo a shorter one of another tenant, so that nobody's short prompts
   * wait for more than a chunk of somebody else's long one. Waiting counts in both orders: no rest waits for ever.
   * @param isOther whether a prompt is of another tenant than the rest.
   */
  before(rest: Queued, isOther: (job: J) => boolean): J | undefined {
    let best: J | undefined;
    for (const job of this.#jobs) {
      if (this.#order === 'fifo' && !isOther(job)) continue;
      if (compareQueued(job, best ?? rest, 'shortest-first') < 0) best = job;
    }
    return best;
  }

  /** Removes a prompt that is computed now or no longer wanted. Returns false when it was not waiting. */
  remove(job: J): boolean {
    const index = this.#jobs.indexOf(job);
    if (index < 0) return false;
    this.#jobs.splice(index, 1);
    this.#count(-job.tokens);
    return true;
  }

  /**
   * Notes how fast a prompt was computed.
   * @param tokens tokens that were computed, not reused. A few tell nothing: they take as long as a run's fixed cost.
   */
  measured(tokens: number, seconds: number): void {
    if (tokens < MEASURABLE_TOKENS) return;
    const rate = tokens / Math.max(seconds, 1e-6);
    this.#rate = this.#rate === 0 ? rate : 0.8 * this.#rate + 0.2 * rate;
  }

  #count(tokens: number): void {
    this.#tokens += tokens;
    this.#waiting(this.#jobs.length);
    metrics.waitingTokens.set(this.#tokens);
  }
}
