import { describe, expect, it } from 'vitest';
import { highestPassed, searchHighestRate } from '../../../bench/measure/highest-rate.ts';

/** A system that sustains up to `limit` requests per second. */
const system = (limit: number) => async (rate: number) => ({ passed: rate <= limit, result: rate });

describe('searchHighestRate', () => {
  it('the search doubles the rate until the first failure, then bisects', async () => {
    const probes = await searchHighestRate(system(11), { start: 1, bisections: 3, limit: 20 });
    expect(probes.map(({ rate }) => rate)).toEqual([1, 2, 4, 8, 16, 12, 10, 11]);
    expect(highestPassed(probes)).toBe(11);
  });

  it('the search halves the rate if even the first one fails', async () => {
    const probes = await searchHighestRate(system(0.3), { start: 2, bisections: 1, limit: 20 });
    expect(probes.map(({ rate }) => rate)).toEqual([2, 1, 0.5, 0.25, 0.375]);
    expect(highestPassed(probes)).toBe(0.25);
  });

  it('the search stops at its limit of probes, and finds 0 if none passed', async () => {
    const probes = await searchHighestRate(system(0), { start: 1, bisections: 3, limit: 4 });
    expect(probes).toHaveLength(4);
    expect(highestPassed(probes)).toBe(0);
  });
});
