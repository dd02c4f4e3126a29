/** How long runs of the decoder take, by their rows: measured at start, and followed as they change with the load. */

/** Weight of a new run in the running mean. */
const WEIGHT = 0.05;
/** A run that was held up by something else counts as at most so many times the mean. */
const MOST = 2;

export class RunCosts {
  readonly #ms = new Map<number, number>();

  /** The first measurement of a number of rows. @param ms time of one run. */
  start(rows: number, ms: number): void {
    this.#ms.set(rows, ms);
  }

  /** A run has taken so long. It counts only where {@link start} was told of its rows. */
  observe(rows: number, ms: number): void {
    const mean = this.#ms.get(rows);
    if (mean !== undefined) this.#ms.set(rows, mean + WEIGHT * (Math.min(ms, MOST * mean) - mean));
  }

  /** Rows that were measured, ascending. */
  get rows(): readonly number[] {
    return [...this.#ms.keys()].sort((a, b) => a - b);
  }

  /** Mean time of a run, in ms; infinite for rows that were not measured. */
  of(rows: number): number {
    return this.#ms.get(rows) ?? Infinity;
  }
}
