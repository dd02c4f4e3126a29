/** Background work that takes a share of the time and rests for the remainder, so that others find the CPU idle. */
import { setTimeout as sleep } from 'node:timers/promises';

/** What tells the time; tests have their own. */
interface Clock {
  /** Monotonic time, in ms. */
  now(): number;
  /** @throws the signal's reason, or an AbortError. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}

const CLOCK: Clock = {
  now: () => performance.now(),
  sleep: (ms, signal) => sleep(ms, undefined, { signal }),
};

/** Longest rest after one piece of work, in ms: a clock that jumps, or a machine that stood still, costs no more. */
const LONGEST_REST_MS = 60_000;

/**
 * Runs pieces of work one at a time, and rests after each for as long as its share of the time asks for. The time of a
 * piece is that on the wall: a piece that takes longer because others use the CPU is followed by a longer rest.
 */
export class Paced {
  /** Share of the time in which pieces run, above 0 and at most 1. */
  readonly share: number;
  readonly #clock: Clock;
  /** Settles when the piece that was asked for last has ended. */
  #last: Promise<void> = Promise.resolve();
  #restsUntilMs = -Infinity;

  constructor(share: number, clock: Clock = CLOCK) {
    this.share = share;
    this.#clock = clock;
  }

  /**
   * Runs a piece of work when the pieces before it have ended and the rest that they owe is over. With a share of 1 it
   * runs at once, beside others.
   * @throws what the work throws, which owes its rest too; the signal's reason.
   */
  async run<T>(work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    if (this.share >= 1) return work();
    const ran = this.#last.then(() => this.#runNext(work, signal));
    this.#last = ran.then(
      () => {},
      () => {},
    );
    return ran;
  }

  async #runNext<T>(work: () => Promise<T>, signal: AbortSignal | undefined): Promise<T> {
    signal?.throwIfAborted();
    const restMs = this.#restsUntilMs - this.#clock.now();
    if (restMs > 0) {
      await this.#clock.sleep(restMs, signal).catch((error) => {
        signal?.throwIfAborted();
        throw error;
      });
    }
    const beganMs = this.#clock.now();
    try {
      return await work();
    } finally {
      const endedMs = this.#clock.now();
      const restMs = (endedMs - beganMs) * (1 / this.share - 1);
      this.#restsUntilMs = endedMs + Math.min(restMs, LONGEST_REST_MS);
    }
  }
}
