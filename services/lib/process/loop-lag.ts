/**
 * The lag of the event loop: the times from one tick of a timer of 10 ms to the next. That timer wakes a process that
 * has nothing to do 100 times a second, which takes 0.1 % of a core. So it runs only while the loop is busy.
 */
import { createHistogram, type Histogram, performance } from 'node:perf_hooks';

/** Time from one tick to the next, in ms. Every delay contains it, as in prom-client's own figures. */
export const LAG_RESOLUTION_MS = 10;
/** Pause between two questions whether the loop is busy, in ms. */
const ASK_EVERY_MS = 1_000;
/**
 * The loop is busy if it has worked for at least this share of the time since it was last asked. On a machine with more
 * to do than cores, an idle gateway is at 0.02, because time in which it is not on a core counts.
 */
const BUSY = 0.05;

/** Figures of the delays, by the word for them in the names of prom-client's metrics. In ns. */
const LAG_FIGURES = {
  min: ({ min }) => min,
  max: ({ max }) => max,
  mean: ({ mean }) => mean,
  stddev: ({ stddev }) => stddev,
  p50: (delays) => delays.percentile(50),
  p90: (delays) => delays.percentile(90),
  p99: (delays) => delays.percentile(99),
} as const satisfies Record<string, (delays: Histogram) => number>;
type LagFigure = keyof typeof LAG_FIGURES;
export const LAG_FIGURE_NAMES = Object.keys(LAG_FIGURES) as LagFigure[];

/**
 * Node's own monitorEventLoopDelay cannot pause: its first tick after a pause counts the pause as a delay, up to
 * minutes that never were.
 */
export class LoopLag {
  readonly #now: () => number;
  readonly #delays = createHistogram();
  #ticks: NodeJS.Timeout | undefined;
  #before = performance.eventLoopUtilization();

  /** @param now monotonic clock, in ms. */
  constructor(now = () => performance.now()) {
    this.#now = now;
    setInterval(() => this.ask(), ASK_EVERY_MS).unref();
  }

  /**
   * Measures from now on if the loop was busy since this was last called, and otherwise no longer.
   * @param utilization share of that time in which the loop worked.
   */
  ask(utilization = this.#utilization()): void {
    if (utilization >= BUSY) this.#ticks ??= this.#startTicks();
    else this.#stopTicks();
  }

  #startTicks(): NodeJS.Timeout {
    let lastMs = this.#now();
    const tick = () => {
      const nowMs = this.#now();
      this.#delays.record(Math.max(1, Math.round((nowMs - lastMs) * 1e6)));
      lastMs = nowMs;
    };
    return setInterval(tick, LAG_RESOLUTION_MS).unref();
  }

  #stopTicks(): void {
    clearInterval(this.#ticks);
    this.#ticks = undefined;
  }

  /** The figures since this was last called, in seconds; those of ticks in time where the loop was never busy. */
  take(): Record<LagFigure, number> {
    const delays = this.#delays;
    const ofIdle = (figure: LagFigure) => (figure === 'stddev' ? 0 : LAG_RESOLUTION_MS / 1e3);
    const figureOf = (figure: LagFigure) => (delays.count === 0 ? ofIdle(figure) : LAG_FIGURES[figure](delays) / 1e9);
    const taken = Object.fromEntries(LAG_FIGURE_NAMES.map((figure) => [figure, figureOf(figure)]));
    delays.reset();
    return taken as Record<LagFigure, number>;
  }

  #utilization(): number {
    const now = performance.eventLoopUtilization();
    const { utilization } = performance.eventLoopUtilization(now, this.#before);
    this.#before = now;
    return utilization;
  }
}
