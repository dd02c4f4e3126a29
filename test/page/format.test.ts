/** The figures of the operator page. */
import { expect, test } from 'vitest';
import { median } from '../../page/format.ts';

test('the median of two runs is their mean, of an even number the mean of the two in the middle', () => {
  expect(median([100, 300])).toBe(200);
  expect(median([9, 1, 100, 3])).toBe(6);
  expect(median([1, 1_000, 0])).toBe(1);
  expect(median([7])).toBe(7);
  expect(median([])).toBeUndefined();
});
