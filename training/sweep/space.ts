/** What a sweep searches: ranges of the learning rate and of the weights of losses, and draws from them. */
import { wordsAt } from '../../services/lib/numeric/random.ts';
import type { SWEPT } from '../choices.ts';
import type { TrainOptions } from '../run/settings.ts';

type Swept = (typeof SWEPT)[number];

/** A range of one setting. By `log` each factor is as likely as another, else each difference. */
export interface Range {
  readonly name: Swept;
  readonly low: number;
  readonly high: number;
  readonly log: boolean;
}

/** What one trial is trained with. */
export type Settings = Readonly<Partial<Record<Swept, number>>>;

/** Digits of a setting that is drawn, so that it is read, written and given again as the same number. */
const DIGITS = 4;

/**
 * The settings of a trial: they depend on the seed, its number and the ranges alone.
 * @param trial counted from 0, below 2^24
 */
export function drawn(ranges: readonly Range[], seed: number, trial: number): Settings {
  return Object.fromEntries(
    ranges.map(({ name, low, high, log }, i) => {
      const [high32, low32] = wordsAt(seed, trial * 256 + i);
      const share = (high32 + low32 / 2 ** 32) / 2 ** 32;
      const value = log ? low * (high / low) ** share : low + (high - low) * share;
      // Rounding may leave the range by half of the last digit.
      return [name, Math.min(high, Math.max(low, Number(value.toPrecision(DIGITS))))];
    }),
  );
}

/** The options of a run with these settings; the weights that are not swept stay as they are. */
export function withSettings<T extends Pick<TrainOptions, 'learningRate' | 'weights'>>(options: T, found: Settings): T {
  const { 'learning-rate': learningRate = options.learningRate, ...weights } = found;
  return { ...options, learningRate, weights: { ...options.weights, ...weights } };
}
