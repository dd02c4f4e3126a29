/** How fair a mix was: pure functions of what each tenant got in a window. */

/** What a tenant got in the window of a mix. */
export interface Share {
  readonly tenant: string;
  readonly weight: number;
  /** Tokens computed for it: prompts and output. */
  readonly tokens: number;
  /** Share of the window in which at least one of its sequences waited, 0 to 1. */
  readonly backlog: number;
}

/** Least fairness index that counts as fair. */
export const LEAST_FAIRNESS = 0.95;
/**
 * A tenant is backlogged if it had something waiting for at least this share of the window. One that was not got all
 * that it asked for, and says nothing about shares.
 */
const BACKLOGGED_FROM = 0.95;

export const backlogged = (shares: readonly Share[]): readonly Share[] =>
  shares.filter(({ backlog }) => backlog >= BACKLOGGED_FROM);

/**
 * Jain's fairness index, (Σ x)² / (n · Σ x²): 1 if all get the same, 1/n if one gets everything. (R. Jain, D. Chiu,
 * W. Hawe: A Quantitative Measure of Fairness and Discrimination for Resource Allocation in Shared Computer Systems,
 * DEC-TR-301, 1984.)
 * @returns 1 if nobody gets anything, as in the limit of equal shares.
 */
export function jainIndex(shares: readonly number[]): number {
  const sum = shares.reduce((total, share) => total + share, 0);
  const squares = shares.reduce((total, share) => total + share * share, 0);
  return squares === 0 ? 1 : (sum * sum) / (shares.length * squares);
}

/** Jain's index of the tokens per weight over the backlogged tenants; undefined if fewer than two were backlogged. */
export function fairness(shares: readonly Share[]): number | undefined {
  const counted = backlogged(shares);
  return counted.length < 2 ? undefined : jainIndex(counted.map(({ tokens, weight }) => tokens / weight));
}

/** @param failed requests of honest tenants that failed, by error code. @returns broken promises; '' if none is. */
export function judge(shares: readonly Share[], failed: Readonly<Record<string, number>>): string {
  const index = fairness(shares);
  const codes = Object.entries(failed).map(([code, count]) => `${count} ${code}`);
  const nothing = backlogged(shares).every(({ tokens }) => tokens === 0);
  const problems = [
    index === undefined ? 'fewer than two tenants were backlogged, so there is nothing to compare' : '',
    index !== undefined && nothing ? 'no backlogged tenant got a token' : '',
    index !== undefined && index < LEAST_FAIRNESS ? `a fairness of ${index.toFixed(3)} is below ${LEAST_FAIRNESS}` : '',
    codes.length > 0 ? `requests of honest tenants failed: ${codes.join(', ')}` : '',
  ];
  return problems.filter((text) => text !== '').join('; ');
}
