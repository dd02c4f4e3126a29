import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { mcNemar, permutationTest } from '../../../training/metrics/paired-tests.ts';

const pairs = (better: number, worse: number, equal = 3) => ({
  a: [...Array(better).fill(1), ...Array(worse).fill(0), ...Array(equal).fill(1)],
  b: [...Array(better).fill(0), ...Array(worse).fill(1), ...Array(equal).fill(1)],
});

describe("McNemar's test", () => {
  it.each([
    [1, 0, 1],
    [5, 0, 0.0625],
    [8, 2, 0.109375],
    [15, 5, 0.041389465],
    [3, 3, 1],
    [0, 0, 1],
  ])('%i items that only one has right and %i that only the other has give p = %f', (better, worse, p) => {
    const { a, b } = pairs(better, worse);
    expect(mcNemar(a, b)).toBeCloseTo(p, 8);
    expect(mcNemar(b, a)).toBeCloseTo(p, 8);
  });

  it('thousands of items that differ have a p-value that is not lost to rounding', () => {
    const { a, b } = pairs(1100, 1000);
    expect(mcNemar(a, b)).toBeCloseTo(0.03069, 4);
  });
});

describe('the test of random signs', () => {
  it('few items are tried with all their signs', () => {
    expect(permutationTest([1, 1, 1], [0, 0, 0])).toBe(0.25);
    expect(permutationTest([0.5, 0.25], [0.5, 0.25])).toBe(1);
  });

  it('many items with the same small gain leave no doubt, and as many gains as losses leave all of it', () => {
    const zeros = Array(100).fill(0);
    expect(permutationTest(Array(100).fill(0.01), zeros)).toBeLessThan(0.001);
    const both = zeros.map((_, i) => (i % 2 ? 1 : -1));
    expect(permutationTest(both, zeros)).toBe(1);
  });

  it('of figures that are 0 or 1 it says about what the exact test says', () => {
    fc.assert(
      fc.property(fc.integer({ min: 8, max: 25 }), fc.integer({ min: 8, max: 25 }), (better, worse) => {
        const { a, b } = pairs(better, worse);
        expect(Math.abs(permutationTest(a, b) - mcNemar(a, b))).toBeLessThan(0.05);
      }),
      { numRuns: 20 },
    );
  });
});
