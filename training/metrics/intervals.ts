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

/** The items of one resample, drawn with replacement. */
function* draws(resample: number, count: number): Generator<number> {
  for (let j = 0; j < count; j += WORDS) {
    const words = wordsAt(SEED, resample * Math.ceil(count / WORDS) + j / WORDS);
    for (let k = 0; k < Math.min(WORDS, count - j); k++) yield Math.floor((words[k]! / 2 ** 32) * count);
  }
}

/** @param figures one for each resample. */
function bounds(figures: Float64Array): Pick<Estimate, 'low' | 'high'> {
  figures.sort();
  const at = (share: number) => figures[Math.round(share * (figures.length - 1))]!;
  return { low: at(0.025), high: at(0.975) };
}

/** @param values one figure for each item; at least one */
export function estimate(values: readonly number[]): Estimate {
  const means = Float64Array.from({ length: RESAMPLES }, (_, resample) => {
    let sum = 0;
    for (const item of draws(resample, values.length)) sum += values[item]!;
    return sum / values.length;
  });
  return { mean: mean(values), ...bounds(means) };
}

/**
 * A figure of a whole corpus that is not a mean of its items, with its interval.
 * @param items at least one
 * @param resamples fewer where the figure takes long
 */
export function estimateOfCorpus<T>(
  items: readonly T[],
  figure: (corpus: readonly T[]) => number,
  resamples = RESAMPLES,
): Estimate {
  const drawn = (resample: number) => Array.from(draws(resample, items.length), (item) => items[item]!);
  const figures = Float64Array.from({ length: resamples }, (_, resample) => figure(drawn(resample)));
  return { mean: figure(items), ...bounds(figures) };
}

/**
 * The mean of `values - baseline`, item by item, with its interval. Items that are hard for both cost it nothing, so
 * it is narrower than the difference of two intervals.
 */
export function estimateDifference(values: readonly number[], baseline: readonly number[]): Estimate {
  return estimate(values.map((value, i) => value - baseline[i]!));
}
