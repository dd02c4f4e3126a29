/** The mean cosine of rows. */
import { expect, test } from 'vitest';
import { meanCosine } from '../../../training/metrics/cosines.ts';

test('the mean is over all pairs of rows, whatever their lengths, and a row of zeros is like no other', () => {
  const rows = (...values: readonly number[]) => Float32Array.from(values);
  expect(meanCosine(rows(3, 0, 5, 0), 2)).toBeCloseTo(1, 6);
  expect(meanCosine(rows(1, 0, 0, 2, -3, 0), 3)).toBeCloseTo((0 - 1 + 0) / 3, 6);
  expect(meanCosine(rows(1, 1, 2, 0), 2)).toBeCloseTo(Math.SQRT1_2, 6);
  expect(meanCosine(rows(0, 0, 2, 0), 2)).toBe(0);
  expect(meanCosine(rows(1, 2), 1)).toBe(0);
});
