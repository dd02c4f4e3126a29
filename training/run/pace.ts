/** How fast a run goes: tokens per second of its latest steps, and the time until its end, validations included. */

/** Steps over which the pace is measured, so that it follows a machine that becomes busy. */
const LATEST = 20;
/** Stops between steps over which their time is measured. */
const LATEST_STOPS = 3;

export class Pace {
  readonly #latest: { readonly ms: number; readonly tokens: number }[] = [];
  readonly #stops: number[] = [];

  /** Counts a step. */
  add(ms: number, tokens: number): void {
    this.#latest.push({ ms, tokens });
    if (this.#latest.length > LATEST) this.#latest.shift();
  }

  /** Counts a stop between two steps: a validation and a checkpoint. */
  stopped(ms: number): void {
    this.#stops.push(ms);
    if (this.#stops.length > LATEST_STOPS) this.#stops.shift();
  }

  /** Whether a step was counted. */
  get isKnown(): boolean {
    return this.#latest.length > 0;
  }

  /**
   * Such as `512 tokens/s, 3 h 20 min left`.
   * @param stopsLeft stops that are still to come; they take no time until one was counted
   */
  words(stepsLeft: number, stopsLeft: number): string {
    const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
    const ms = sum(this.#latest.map((step) => step.ms));
    const tokens = sum(this.#latest.map((step) => step.tokens));
    const rate = (1000 * tokens) / Math.max(ms, 1e-9);
    const ofStops = (sum(this.#stops) / Math.max(this.#stops.length, 1)) * stopsLeft;
    const left = duration((ms / this.#latest.length) * stepsLeft + ofStops);
    return `${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s, ${left} left`;
  }
}

/** A time in ms in the two largest of its units. */
export function duration(ms: number): string {
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}
