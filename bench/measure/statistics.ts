/** Statistics of samples as pure functions: they have no clock and no state, and do not know what was measured. */

/**
 * Sample quantile by linear interpolation between order statistics (type 7, as in numpy and R); NaN without samples.
 */
export function quantile(samples: readonly number[], q: number): number {
  const sorted = [...samples].sort((a, b) => a - b);
  const position = (sorted.length - 1) * q;
  const below = Math.floor(position);
  const low = sorted[below];
  if (low === undefined) return Number.NaN;
  return low + ((sorted[below + 1] ?? low) - low) * (position - below);
}

export const median = (samples: readonly number[]) => quantile(samples, 0.5);

export const mean = (samples: readonly number[]) => samples.reduce((sum, x) => sum + x, 0) / samples.length;

export interface Interval {
  readonly low: number;
  readonly high: number;
  /** Probability that such an interval holds the true median; with too few samples it is less than was asked for. */
  readonly coverage: number;
}

/**
 * Confidence interval of the median between two order statistics [x(k), x(n+1-k)]; it assumes only that samples are
 * independent. It holds the median with probability 1 - 2 P(Bin(n, 1/2) < k); k is the largest that still gives
 * `confidence`. 95 % needs six samples; with fewer the interval is the whole range, and `coverage` says what it is
 * worth.
 */
export function medianInterval(samples: readonly number[], confidence = 0.95): Interval {
  const sorted = [...samples].sort((a, b) => a - b);
  const n = sorted.length;
  let tail = 0.5 ** n; // P(Bin(n, 1/2) < k) for k = 1
  let term = tail;
  let k = 1;
  while (k + 1 <= n / 2) {
    term *= (n - k + 1) / k;
    if (1 - 2 * (tail + term) < confidence) break;
    tail += term;
    k++;
  }
  return { low: sorted[k - 1] ?? Number.NaN, high: sorted[n - k] ?? Number.NaN, coverage: Math.max(0, 1 - 2 * tail) };
}
