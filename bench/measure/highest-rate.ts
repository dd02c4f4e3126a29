/** The search for the highest rate that a system sustains: doubling until it fails, then bisection. */

interface RateSearch {
  /** Requests per second to begin with. */
  readonly start: number;
  /** Bisections once a rate has passed and another has failed: each halves the uncertainty. */
  readonly bisections: number;
  /** Upper bound on the number of probes. */
  readonly limit: number;
}

export interface Probe<T> {
  readonly rate: number;
  readonly passed: boolean;
  readonly result: T;
}

/**
 * Searches, and returns every probe in the order they were made; {@link highestPassed} gives the highest rate that
 * passed. If the first probe fails, the rate is halved until one passes.
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

/** The highest rate that passed; 0 if none did. */
export const highestPassed = (probes: readonly Probe<unknown>[]) =>
  Math.max(0, ...probes.filter(({ passed }) => passed).map(({ rate }) => rate));
