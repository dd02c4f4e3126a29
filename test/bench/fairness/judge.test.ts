import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { fairness, jainIndex, judge, type Share } from '../../../bench/fairness/judge.ts';

const share = (tokens: number, change: Partial<Share> = {}): Share => ({
  tenant: 'x',
  weight: 1,
  backlog: 1,
  tokens,
  ...change,
});

describe('the fairness of a mix', () => {
  test("Jain's index is 1 for equal shares, 1/n if one has everything, and as in Jain's paper in between", () => {
    expect(jainIndex([5, 5, 5])).toBe(1);
    expect(jainIndex([7, 0, 0, 0])).toBe(0.25);
    expect(jainIndex([1, 2])).toBeCloseTo(9 / 10);
    expect(jainIndex([0, 0])).toBe(1);
  });

  test("Jain's index lies between 1/n and 1, and does not depend on the unit", () => {
    const shares = fc.array(fc.integer({ min: 0, max: 1_000 }), { minLength: 1 });
    fc.assert(
      fc.property(shares, fc.integer({ min: 1, max: 9 }), (got, unit) => {
        const index = jainIndex(got);
        expect(index).toBeGreaterThan(1 / got.length - 1e-9);
        expect(index).toBeLessThan(1 + 1e-9);
        expect(jainIndex(got.map((each) => each * unit))).toBeCloseTo(index);
      }),
    );
  });

  test('a tenant of weight 3 is served fairly if it gets three times as much', () => {
    expect(fairness([share(300, { weight: 3 }), share(100)])).toBe(1);
    expect(fairness([share(100, { weight: 3 }), share(100)])).toBeCloseTo(0.8);
  });

  test('a tenant that had nothing waiting does not count', () => {
    const satisfied = share(1, { backlog: 0.5 });
    expect(fairness([share(100), share(100), satisfied])).toBe(1);
    expect(fairness([share(100), satisfied])).toBeUndefined();
  });

  test.each<[string, Share[], Record<string, number>]>([
    ['', [share(100), share(90)], {}],
    ['a fairness of 0.800 is below 0.95', [share(300), share(100)], {}],
    ['requests of honest tenants failed: 2 saturated', [share(1), share(1)], { saturated: 2 }],
    ['fewer than two tenants were backlogged, so there is nothing to compare', [share(1)], {}],
    ['no backlogged tenant got a token', [share(0), share(0)], {}],
  ])('a mix is judged: "%s"', (broken, shares, failed) => {
    expect(judge(shares, failed)).toBe(broken);
  });
});
