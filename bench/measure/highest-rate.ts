/** The search for the highest rate that a system sustains: doubling until it fails, then bisection. */

export interface RateSearch {
  /** Requests per second to begin with. */
  readonly start: number;
  /** Bisections after the first failure: each halves the uncertainty. */
  readonly bisections: number;
  /** Probes at most. */
  readonly limit: number;
}

export interface Probe<T> {
  readonly rate: number;
  readonly passed: boolean;
  readonly result: T;
}

/**
 * Every probe made, in order; the highest rate that passed is {@link highestPassed}. Where the first one fails the rate is
 * halved until one passes.
 */
export async function searchHighestRate<T>(
  probe: (rate: number) => Promise<{ passed: boolean; result: T }>,
  { start, bisections, limit }: RateSearch,
): Promise<Probe<T>[]> {
  const probes: Probe<T>[] = [];
  let low = 0;
  let high = Number.POSITIVE_INFINITY;
  let rate = start;
  let halvings = bisections;
  while (probes.length < limit) {
    const bracketed = low > 0 && high < Number.POSITIVE_INFINITY;
    if (bracketed && halvings-- === 0) break;
    const made = { rate, ...(await probe(rate)) };
    probes.push(made);
    if (made.passed) low = rate;
    else high = rate;
    rate = low === 0 ? high / 2 : high === Number.POSITIVE_INFINITY ? low * 2 : (low + high) / 2;
  }
  return probes;
}

/** 0 where none passed. */
export const highestPassed = (probes: readonly Probe<unknown>[]) =>
  Math.max(0, ...probes.filter(({ passed }) => passed).map(({ rate }) => rate));
