/** How fast a run goes: tokens per second of its latest steps, and the time until its last one. */

/** Steps over which the pace is measured, so that it follows a machine that becomes busy. */
const LATEST = 20;

export class Pace {
  readonly #latest: { readonly ms: number; readonly tokens: number }[] = [];

  /** Counts a step. Validations and checkpoints between steps do not count. */
  add(ms: number, tokens: number): void {
    this.#latest.push({ ms, tokens });
    if (this.#latest.length > LATEST) this.#latest.shift();
  }

  /** Whether a step was counted. */
  get isKnown(): boolean {
    return this.#latest.length > 0;
  }

  /** Such as `512 tokens/s, 3 h 20 min left`. */
  words(stepsLeft: number): string {
    const ms = this.#latest.reduce((sum, step) => sum + step.ms, 0);
    const tokens = this.#latest.reduce((sum, step) => sum + step.tokens, 0);
    const rate = (1000 * tokens) / Math.max(ms, 1e-9);
    return `${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s, ${duration((ms / this.#latest.length) * stepsLeft)} left`;
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
