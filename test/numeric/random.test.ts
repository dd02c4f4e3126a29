import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { noiseBits, philox4x32, wordsAt } from '../../services/lib/numeric/random.ts';

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
  ] as const)('philox gives the published words for key $key', ({ counter, key, words }) => {
    expect(philox4x32(counter, key)).toEqual(words);
  });
});

describe('noiseBits', () => {
  const N = 20_000;
  const line = Array.from({ length: N }, (_, i) => i);
  const noise = (seed: number, position: number, id: number, from: 0 | 2 = 0) => {
    const words = wordsAt(seed, position);
    return noiseBits(id, words[from], words[from + 1]!) / 2 ** 32;
  };

  it('noise lies in [0, 1) and depends on seed, position and token alone', () => {
    fc.assert(
      fc.property(fc.maxSafeNat(), fc.nat({ max: 2 ** 32 - 1 }), fc.nat({ max: 2 ** 18 }), (seed, position, id) => {
        const u = noise(seed, position, id);
        expect(u).toBeGreaterThanOrEqual(0);
        expect(u).toBeLessThan(1);
        expect(noise(seed, position, id)).toBe(u);
      }),
    );
  });

  const places = fc.sample(fc.tuple(fc.maxSafeNat(), fc.nat({ max: 4000 })), { numRuns: 8, seed: 1 });
  it.each([[0, 0], [1, 0], [0, 1], [2 ** 32, 7], [2 ** 53 - 1, 1000], ...places])(
    'noise is uniform over tokens for seed %d at position %d',
    (seed, position) => {
      for (const from of [0, 2] as const) {
        const numbers = line.map((id) => noise(seed, position, id, from));
        expect(chiSquare(numbers, 100)).toBeLessThan(chiSquareLimit(99));
      }
    },
  );

  it.each([0, 1, 271, 151_935])('noise is uniform over positions and over consecutive seeds for token %d', (id) => {
    for (const numbers of [line.map((i) => noise(42, i, id)), line.map((i) => noise(i, 3, id))]) {
      expect(chiSquare(numbers, 100)).toBeLessThan(chiSquareLimit(99));
    }
  });

  it('noise does not correlate between neighbouring tokens, positions and seeds, seeds 2^32 apart, and both halves', () => {
    const own = line.map((id) => noise(42, 5, id));
    for (const other of [
      line.map((id) => noise(42, 5, id + 1)),
      line.map((id) => noise(42, 5, id ^ 1)),
      line.map((id) => noise(42, 6, id)),
      line.map((id) => noise(43, 5, id)),
      line.map((id) => noise(42 + 2 ** 32, 5, id)),
      line.map((id) => noise(42, 5, id, 2)),
    ]) {
      expect(Math.abs(correlation(own, other))).toBeLessThan(4 / Math.sqrt(N));
    }
  });

  it('no two tokens of a position get the same noise', () => {
    fc.assert(
      fc.property(fc.maxSafeNat(), (seed) => {
        const [a, b] = wordsAt(seed, 0);
        expect(new Set(line.map((id) => noiseBits(id, a, b))).size).toBe(N);
      }),
      { numRuns: 10 },
    );
  });

  it('noise depends on all bits of the seed', () => {
    expect(wordsAt(5 + 2 ** 32, 0)).not.toEqual(wordsAt(5, 0));
    expect(wordsAt(5 + 2 ** 52, 0)).not.toEqual(wordsAt(5, 0));
  });

  it.each(Array.from({ length: 32 }, (_, bit) => bit))('bit %d of 32 is set half of the time', (bit) => {
    const ones = line.slice(0, 4000).filter((id) => (noise(1, 0, id) * 2 ** 32) & (2 ** bit)).length;
    expect(Math.abs(ones - 2000)).toBeLessThan(4 * Math.sqrt(1000));
  });
});
