/** Intervals of means by the bootstrap. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { wordsAt } from '../../../services/lib/numeric/random.ts';
import { estimate, estimateDifference, estimateOfCorpus } from '../../../training/metrics/intervals.ts';

test('the interval of a share is the one that its standard error gives', () => {
  const values = Array.from({ length: 400 }, (_, i) => (i % 4 === 0 ? 1 : 0));
  const { mean, low, high } = estimate(values);
  const error = Math.sqrt((0.25 * 0.75) / 400);
  expect(mean).toBe(0.25);
  expect((mean - low) / (1.96 * error)).toBeCloseTo(1, 0);
  expect((high - mean) / (1.96 * error)).toBeCloseTo(1, 0);
});

test('about 95 of 100 intervals hold the true mean', () => {
  const draws = Array.from({ length: 200 }, (_, trial) =>
    Array.from({ length: 60 }, (_, i) => (wordsAt(100 + trial, i)[0] / 2 ** 32 < 0.4 ? 1 : 0)),
  );
  const holding = draws.filter((values) => {
    const { low, high } = estimate(values);
    return low <= 0.4 && 0.4 <= high;
  }).length;
  expect(holding).toBeGreaterThanOrEqual(180);
  expect(holding).toBeLessThanOrEqual(198);
});

test('an interval lies around its mean within the values, and the same values have the same interval', () => {
  fc.assert(
    fc.property(fc.array(fc.double({ min: -10, max: 10, noNaN: true }), { minLength: 1, maxLength: 30 }), (values) => {
      const { low, high } = estimate(values);
      expect(low).toBeGreaterThanOrEqual(Math.min(...values) - 1e-9);
      expect(high).toBeLessThanOrEqual(Math.max(...values) + 1e-9);
      expect(low).toBeLessThanOrEqual(high);
      expect(estimate(values)).toEqual(estimate(values));
    }),
    { numRuns: 20 },
  );
});

test('a constant gain has a difference without width, however wide the values lie', () => {
  const baseline = Array.from({ length: 50 }, (_, i) => (i * 37) % 11);
  const gain = estimateDifference(
    baseline.map((value) => value + 2),
    baseline,
  );
  expect(gain).toEqual({ mean: 2, low: 2, high: 2 });
  expect(estimate(baseline).high - estimate(baseline).low).toBeGreaterThan(1);
});

test('a figure of a corpus has the interval of a mean where it is one, and its own value where it is not', () => {
  const values = Array.from({ length: 30 }, (_, i) => (i * 7) % 5);
  const mean = (corpus: readonly number[]) => corpus.reduce((sum, value) => sum + value, 0) / corpus.length;
  expect(estimateOfCorpus(values, mean)).toEqual(estimate(values));
  const largest = estimateOfCorpus(values, (corpus) => Math.max(...corpus), 100);
  expect(largest).toMatchObject({ mean: 4, high: 4 });
});
