/** How far an evaluation is, how fast, and when it will be done: kept answers cost no time and do not count as fast. */
import type { OnProgress } from '../harness/run.ts';

/** Characters of the bar. */
const BAR = 24;
/** Where nobody watches, a line is written each time that so many percent more are done. */
const STEP_PERCENT = 10;

export class Pace {
  readonly #total: number;
  readonly #onProgress: OnProgress;
  readonly #clock: () => number;
  readonly #startMs: number;
  #done = 0;
  #asked = 0;

  /** @param clock in ms */
  constructor(total: number, onProgress: OnProgress, clock: () => number = () => performance.now()) {
    this.#total = total;
    this.#onProgress = onProgress;
    this.#clock = clock;
    this.#startMs = clock();
  }

  /** Counts one sample. @param asked whether it was completed now. */
  done(asked: boolean): void {
    const before = Math.floor((100 * this.#done) / this.#total / STEP_PERCENT);
    this.#done++;
    if (asked) this.#asked++;
    const after = Math.floor((100 * this.#done) / this.#total / STEP_PERCENT);
    this.#onProgress(this.#text(), after > before);
  }

  #text(): string {
    const filled = Math.floor((BAR * this.#done) / this.#total);
    const bar = `${'█'.repeat(filled)}${'░'.repeat(BAR - filled)}`;
    const rate = this.#asked / Math.max(1e-3, (this.#clock() - this.#startMs) / 1000);
    const left = this.#asked === 0 ? undefined : (this.#total - this.#done) / rate;
    const speed = left === undefined ? 'kept from before' : `${rate.toFixed(2)} samples/s, ${spoken(left)} left`;
    return `${bar} ${this.#done} of ${this.#total} samples, ${speed}`;
  }
}

function spoken(seconds: number): string {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  return seconds < 5400 ? `${Math.ceil(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
