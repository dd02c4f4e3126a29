import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { fitFloor } from '../../../bench/drills/slope.ts';

describe('a slope', () => {
  test('the slope of a line is that of the line, without error', () => {
    const real = fc.double({ min: -1e6, max: 1e6, noNaN: true });
    fc.assert(
      fc.property(real, real, fc.integer({ min: 12, max: 100 }), (perUnit, offset, count) => {
        const fit = fitFloor(Array.from({ length: count }, (_, x) => [x, offset + perUnit * x]));
        expect(fit.perUnit).toBeCloseTo(perUnit, 3);
        expect(fit.error).toBeLessThan(1e-3);
      }),
    );
  });

  test('the slope of a saw tooth is that of its floor', () => {
    const saw = (grows: number) => Array.from({ length: 120 }, (_, x) => [x, (x % 7) * 10 + grows * x] as const);
    expect(fitFloor(saw(0))).toMatchObject({ perUnit: 0, error: 0 });
    const growing = fitFloor(saw(5));
    expect(growing.perUnit - 2 * growing.error).toBeGreaterThan(4);
  });

  test('the slope of too few points is not known', () => {
    expect(fitFloor([]).error).toBe(Infinity);
    expect(fitFloor([[1, 2]])).toEqual({ mean: 2, perUnit: 0, error: Infinity });
  });
});
