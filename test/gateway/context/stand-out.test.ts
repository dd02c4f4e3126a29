import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { standOut } from '../../../services/gateway/context/stand-out.ts';

test.each([
  [[], 0],
  [[0.4], 1],
  [[0.4, 0.4, 0.4], 1],
  [[0.5, 0.2, 0.15, 0.1], 1],
  [[0.5, 0.45, 0.15, 0.1], 2],
  [[0.5, 0.45, 0.41, 0.1], 3],
  [[0.2, 9, 8, 1, 0.1], 4], // the first one's score is of another unit: what follows it counts as no better
])('of chunks with the scores %j the first %i stand out', (scores, count) => {
  expect(standOut(scores)).toBe(count);
});

describe('for any scores', () => {
  const integers = fc
    .array(fc.integer({ min: -1000, max: 1000 }), { minLength: 1, maxLength: 100 })
    .map((scores) => scores.sort((a, b) => b - a));

  test('the best chunk stands out and the last one does not, unless it is the only one', () => {
    fc.assert(
      fc.property(integers, (scores) => {
        const count = standOut(scores);
        expect(count).toBeGreaterThanOrEqual(1);
        if (scores.length > 1) expect(count).toBeLessThan(scores.length);
      }),
    );
  });

  test('chunks that stand out have three quarters of the lead of the best one, and the next has not', () => {
    fc.assert(
      fc.property(integers, (scores) => {
        const count = standOut(scores);
        const lead = (i: number) => scores[i]! - scores.at(-1)!;
        for (let i = 1; i < count; i++) expect(lead(i)).toBeGreaterThanOrEqual(0.75 * lead(0));
        if (count < scores.length && lead(0) > 0) expect(lead(count)).toBeLessThan(0.75 * lead(0));
      }),
    );
  });

  test('neither the unit of scores nor their zero changes how many stand out', () => {
    fc.assert(
      fc.property(
        integers,
        fc.integer({ min: 1, max: 64 }),
        fc.integer({ min: -500, max: 500 }),
        (scores, unit, zero) => {
          expect(standOut(scores.map((score) => unit * score + zero))).toBe(standOut(scores));
        },
      ),
    );
  });
});
