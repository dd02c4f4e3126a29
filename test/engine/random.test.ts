import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { philox4x32, uniform } from '../../services/lib/engine/random.ts';

/** Critical value of chi-square with `df` degrees of freedom at p = 0.0001 (Wilson-Hilferty). */
const chiSquareLimit = (df: number) => df * (1 - 2 / (9 * df) + 3.719 * Math.sqrt(2 / (9 * df))) ** 3;

function chiSquare(numbers: readonly number[], bins: number): number {
  const counts = new Array<number>(bins).fill(0);
  for (const x of numbers) counts[Math.floor(x * bins)]! += 1;
  const expected = numbers.length / bins;
  return counts.reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0);
}

function correlation(xs: readonly number[], ys: readonly number[]): number {
  const mean = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;
  const [mx, my] = [mean(xs), mean(ys)];
  let [xy, xx, yy] = [0, 0, 0];
  xs.forEach((x, i) => {
    xy += (x - mx) * (ys[i]! - my);
    xx += (x - mx) ** 2;
    yy += (ys[i]! - my) ** 2;
  });
  return xy / Math.sqrt(xx * yy);
}

describe('philox4x32', () => {
  // Known answers of Random123, tests/kat_vectors.
  it.each([
    { counter: [0, 0, 0, 0], key: [0, 0], words: [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8] },
    {
      counter: [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
      key: [0xffffffff, 0xffffffff],
      words: [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
    },
    {
      counter: [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      key: [0xa4093822, 0x299f31d0],
      words: [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    },
  ] as const)('answers as published for key $key', ({ counter, key, words }) => {
    expect(philox4x32(counter, key)).toEqual(words);
  });
});

describe('uniform', () => {
  const N = 20_000;
  const line = Array.from({ length: N }, (_, i) => i);
  const seeds = [0, 1, 42, 2 ** 32, 2 ** 53 - 1];

  it('lies in [0, 1) and follows from seed and position alone', () => {
    fc.assert(
      fc.property(fc.maxSafeNat(), fc.nat({ max: 2 ** 32 - 1 }), (seed, position) => {
        const u = uniform(seed, position);
        expect(u).toBeGreaterThanOrEqual(0);
        expect(u).toBeLessThan(1);
        expect(uniform(seed, position)).toBe(u);
      }),
    );
  });

  it.each(seeds)('is uniform over positions for seed %d', (seed) => {
    const numbers = line.map((i) => uniform(seed, i));
    expect(chiSquare(numbers, 100)).toBeLessThan(chiSquareLimit(99));
  });

  it.each([0, 1, 1000])('is uniform over consecutive seeds at position %d', (position) => {
    const numbers = line.map((seed) => uniform(seed, position));
    expect(chiSquare(numbers, 100)).toBeLessThan(chiSquareLimit(99));
  });

  it('does not correlate between neighbouring positions, neighbouring seeds, and seeds 2^32 apart', () => {
    const own = line.map((i) => uniform(42, i));
    for (const other of [
      line.map((i) => uniform(42, i + 1)),
      line.map((i) => uniform(43, i)),
      line.map((i) => uniform(42 + 2 ** 32, i)),
    ]) {
      expect(Math.abs(correlation(own, other))).toBeLessThan(4 / Math.sqrt(N));
    }
  });

  it('uses the whole seed', () => {
    expect(uniform(5 + 2 ** 32, 0)).not.toBe(uniform(5, 0));
    expect(uniform(5 + 2 ** 52, 0)).not.toBe(uniform(5, 0));
  });

  it.each(Array.from({ length: 53 }, (_, bit) => bit))('sets bit %d of 53 half of the time', (bit) => {
    const numbers = line.slice(0, 4000).map((i) => uniform(1, i) * 2 ** 53);
    const ones = numbers.filter((x) => Math.floor(x / 2 ** bit) % 2 === 1).length;
    expect(Math.abs(ones - 2000)).toBeLessThan(4 * Math.sqrt(1000));
  });
});
