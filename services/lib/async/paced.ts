/**
 * Background work that takes a share of the time, begins while the machine has little else to do, and rests for the
 * remainder, so that others find the CPU idle.
 */
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';

/** What tells the time and what the machine does; tests have their own. */
interface Surroundings {
  /** Monotonic time, in ms. */
  now(): number;
  /** @throws the signal's reason, or an AbortError. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
  /** Whether threads other than the one that asks have half of the machine's cores, or more. */
  isBusy(): boolean;
}

const MACHINE: Surroundings = {
  now: () => performance.now(),
  sleep: (ms, signal) => sleep(ms, undefined, { signal }),
  isBusy: () => isBusyBy(loadavg(), availableParallelism()),
};

/** @returns the text of `/proc/loadavg`; '' where there is no such file. */
function loadavg(): string {
  try {
    return readFileSync('/proc/loadavg', 'utf8');
  } catch {
    return '';
  }
}

/**
 * @param text of `/proc/loadavg`: its fourth field says how many threads of the machine run or wait for a core at this
 *   moment, the one that asks among them. Without that number the machine counts as idle.
 * @param cores of the machine.
 */
export function isBusyBy(text: string, cores: number): boolean {
  const runnable = Number.parseInt(text.split(' ')[3] ?? '', 10) || 1;
  return runnable - 1 >= cores / 2;
}

/** Pause between two looks at the machine, in ms, and how many in a row must find it idle for a piece to begin. */
export const LOOK_EVERY_MS = 10;
const IDLE_LOOKS = 2;
/** Longest time that a piece waits for an idle machine, in ms: on one that never is, work still gets done. */
export const LONGEST_WAIT_MS = 1_000;

/** Longest rest after one piece of work, in ms: a clock that jumps, or a machine that stood still, costs no more. */
const LONGEST_REST_MS = 60_000;

/**
 * Runs pieces of work one at a time, and rests after each for as long as its share of the time asks for. The time of a
 * piece is that on the wall: a piece that takes longer because others use the CPU is followed by a longer rest. A
 * request that is being answered keeps a piece from beginning, so what a piece costs others is at most its own time.
 */
export class Paced {
  /** Share of the time in which pieces run, above 0 and at most 1. */
  readonly share: number;
  readonly #machine: Surroundings;
  /** Settles when the piece that was asked for last has ended. */
  #last: Promise<void> = Promise.resolve();
  #restsUntilMs = -Infinity;

  constructor(share: number, machine: Surroundings = MACHINE) {
    this.share = share;
    this.#machine = machine;
  }

  /** Monotonic time by the clock of its rests, in ms. */
  now(): number {
    return this.#machine.now();
  }

  /**
   * Runs a piece of work when the pieces before it have ended, the rest that they owe is over, and the machine is idle
   * or has not been for long. With a share of 1 it runs at once, beside others.
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
    const restMs = this.#restsUntilMs - this.#machine.now();
    if (restMs > 0) await this.#sleep(restMs, signal);
    await this.#idleMachine(signal);
    const beganMs = this.#machine.now();
    try {
      return await work();
    } finally {
      const endedMs = this.#machine.now();
      const restMs = (endedMs - beganMs) * (1 / this.share - 1);
      this.#restsUntilMs = endedMs + Math.min(restMs, LONGEST_REST_MS);
    }
  }

  /** Waits until the machine has little to do, or for {@link LONGEST_WAIT_MS}. */
  async #idleMachine(signal: AbortSignal | undefined): Promise<void> {
    const untilMs = this.#machine.now() + LONGEST_WAIT_MS;
    for (let idle = this.#machine.isBusy() ? 0 : 1; idle < IDLE_LOOKS && this.#machine.now() < untilMs; ) {
      await this.#sleep(LOOK_EVERY_MS, signal);
      idle = this.#machine.isBusy() ? 0 : idle + 1;
    }
  }

  async #sleep(ms: number, signal: AbortSignal | undefined): Promise<void> {
    await this.#machine.sleep(ms, signal).catch((error) => {
      signal?.throwIfAborted();
      throw error;
    });
  }
}
