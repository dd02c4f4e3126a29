/**
 * Tests of whether two ways of completing the same items differ. A p-value is the probability of a difference at least
 * as large as the one that was found if the two were equally good; both tests are two-sided.
 */
import { wordsAt } from '../../services/lib/numeric/random.ts';

/** Items up to which all signs are tried; with more, signs are drawn. */
const EXACT_ITEMS = 12;
const DRAWS = 4_000;
const SEED = 2;
const BITS = 32;
/** Sums of the same numbers in another order may differ by so much. */
const ROUNDING = 1e-9;

/**
 * McNemar's exact test of figures that are 0 or 1: the items on which the two differ are tosses of a fair coin.
 * @returns 1 where they differ on no item
 */
export function mcNemar(a: readonly number[], b: readonly number[]): number {
  const better = a.filter((value, i) => value > b[i]!).length;
  const worse = a.filter((value, i) => value < b[i]!).length;
  const tosses = better + worse;
  // Terms of the binomial distribution are added by their logarithms: 2^-tosses is 0 as a float from 1075 tosses on.
  let logTerm = -tosses * Math.LN2;
  let tail = Math.exp(logTerm);
  for (let k = 1; k <= Math.min(better, worse); k++) {
    logTerm += Math.log(tosses - k + 1) - Math.log(k);
    tail += Math.exp(logTerm);
  }
  return Math.min(1, 2 * tail);
}

/**
 * The test of signs at random (Fisher's permutation test): if the two were equally good, each item's difference could
 * as well have the other sign.
 * @param a, b one figure for each item; at least one
 */
export function permutationTest(a: readonly number[], b: readonly number[]): number {
  const differences = a.map((value, i) => value - b[i]!).filter((difference) => difference !== 0);
  const found = Math.abs(differences.reduce((sum, difference) => sum + difference, 0)) - ROUNDING;
  const count = differences.length;
  const isAsLarge = (sign: (item: number) => number) => {
    let sum = 0;
    for (const [i, difference] of differences.entries()) sum += sign(i) * difference;
    return Math.abs(sum) >= found;
  };
  if (count <= EXACT_ITEMS) {
    const all = 2 ** count;
    let large = 0;
    for (let signs = 0; signs < all; signs++) if (isAsLarge((i) => ((signs >> i) & 1 ? 1 : -1))) large++;
    return large / all;
  }
  const words = Math.ceil(count / (4 * BITS));
  let large = 0;
  for (let draw = 0; draw < DRAWS; draw++) {
    const bits = Array.from({ length: words }, (_, word) => wordsAt(SEED, draw * words + word)).flat();
    if (isAsLarge((i) => ((bits[Math.floor(i / BITS)]! >>> (i % BITS)) & 1 ? 1 : -1))) large++;
  }
  return (large + 1) / (DRAWS + 1); // what was found is one of the draws
}
