import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { median, medianInterval, quantile } from '../../../bench/measure/statistics.ts';

describe('quantile', () => {
  it('a quantile interpolates between order statistics as numpy does', () => {
    const samples = [15, 20, 35, 40, 50];
    expect(quantile(samples, 0.4)).toBeCloseTo(29, 12);
    expect(quantile(samples, 0)).toBe(15);
    expect(quantile(samples, 1)).toBe(50);
    expect(median([4, 1, 3, 2])).toBe(2.5);
  });

  it('a quantile of no samples is NaN', () => expect(quantile([], 0.5)).toBeNaN());

  it('a quantile leaves its samples as they were', () => {
    const samples = [3, 1, 2];
    quantile(samples, 0.5);
    expect(samples).toEqual([3, 1, 2]);
  });

  it('a quantile stays in the range of the samples, and grows with q', () => {
    const samples = fc.array(fc.double({ noNaN: true, min: -1e6, max: 1e6 }), { minLength: 1, maxLength: 40 });
    const share = fc.double({ noNaN: true, min: 0, max: 1 });
    fc.assert(
      fc.property(samples, share, share, (xs, p, q) => {
        const [low, high] = [quantile(xs, Math.min(p, q)), quantile(xs, Math.max(p, q))];
        expect(low).toBeGreaterThanOrEqual(Math.min(...xs));
        expect(high).toBeLessThanOrEqual(Math.max(...xs));
        expect(low).toBeLessThanOrEqual(high + 1e-9 * Math.abs(high));
      }),
    );
  });
});

describe('medianInterval', () => {
  const upTo = (n: number) => Array.from({ length: n }, (_, i) => i + 1);

  // The values of P(Bin(n, 1/2) < k) are from tables of the sign test.
  it.each([
    [6, 1, 6, 0.96875],
    [10, 2, 9, 1 - 22 / 1024],
    [15, 4, 12, 1 - (2 * 576) / 32768],
    [20, 6, 15, 1 - (2 * 21700) / 1048576],
  ])('the interval of %i samples lies between the right order statistics', (n, low, high, coverage) => {
    const interval = medianInterval(upTo(n));
    expect(interval).toMatchObject({ low, high });
    expect(interval.coverage).toBeCloseTo(coverage, 12);
  });

  it('the interval of too few samples is their range, and says what it is worth', () => {
    expect(medianInterval([5, 3, 4])).toEqual({ low: 3, high: 5, coverage: 0.75 });
    expect(medianInterval([7])).toEqual({ low: 7, high: 7, coverage: 0 });
  });
});
