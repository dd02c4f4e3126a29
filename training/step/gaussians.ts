/** Normal random numbers that depend on seed and position alone, by Box and Muller's method on Philox words. */
import { wordsAt } from '../../services/lib/numeric/random.ts';

/** In (0, 1): the logarithm of 0 is not finite. */
const unit = (word: number) => (word + 0.5) / 2 ** 32;

/**
 * The numbers at positions `start` to `start + count`, with mean 0.
 * @param seed whole number below 2^53
 * @param start below 2^32; the same position has the same number
 */
export function gaussians(seed: number, start: number, count: number, deviation: number): Float32Array {
  return Float32Array.from({ length: count }, (_, i) => {
    const [a, b] = wordsAt(seed, start + i);
    return deviation * Math.sqrt(-2 * Math.log(unit(a))) * Math.cos(2 * Math.PI * unit(b));
  });
}
