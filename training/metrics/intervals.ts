/**
 * 95 % intervals of means by the bootstrap's percentiles (Efron, 1979): the mean is taken again and again over as many
 * items, drawn with replacement. The draws depend on the seed and the number of items alone, so two sets of figures
 * for the same items are drawn alike, and the interval of their difference is a paired one.
 */
import { wordsAt } from '../../services/lib/numeric/random.ts';

export interface Estimate {
  readonly mean: number;
  /** The bounds of its 95 % interval. */
  readonly low: number;
  readonly high: number;
}

const RESAMPLES = 2000;
const SEED = 1;
/** Random words that one position gives. */
const WORDS = 4;

const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** @param values one figure for each item; at least one */
export function estimate(values: readonly number[]): Estimate {
  const count = values.length;
  const means = new Float64Array(RESAMPLES);
  for (let i = 0; i < RESAMPLES; i++) {
    let sum = 0;
    for (let j = 0; j < count; j += WORDS) {
      const words = wordsAt(SEED, i * Math.ceil(count / WORDS) + j / WORDS);
      for (let k = 0; k < Math.min(WORDS, count - j); k++) sum += values[Math.floor((words[k]! / 2 ** 32) * count)]!;
    }
    means[i] = sum / count;
  }
  means.sort();
  const at = (share: number) => means[Math.round(share * (RESAMPLES - 1))]!;
  return { mean: mean(values), low: at(0.025), high: at(0.975) };
}

/**
 * The mean of `values - baseline`, item by item, with its interval. Items that are hard for both cost it nothing, so
 * it is narrower than the difference of two intervals.
 */
export function estimateDifference(values: readonly number[], baseline: readonly number[]): Estimate {
  return estimate(values.map((value, i) => value - baseline[i]!));
}
