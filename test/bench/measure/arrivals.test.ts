import { describe, expect, it } from 'vitest';
import { ARRIVALS, arrivalTimes, RandomStream } from '../../../bench/measure/arrivals.ts';
import { mean } from '../../../bench/measure/statistics.ts';

const gapsOf = (times: readonly number[]) => times.map((at, i) => at - (times[i - 1] ?? 0));
/** Coefficient of variation: 1 for Poisson, 1 / sqrt(shape) for gamma. */
const variation = (gaps: readonly number[]) => {
  const average = mean(gaps);
  return Math.sqrt(mean(gaps.map((gap) => (gap - average) ** 2))) / average;
};

describe('arrivalTimes', () => {
  it.each(ARRIVALS)(
    '%s arrivals ascend, repeat with the seed, and have exactly the rate that was asked for',
    (kind) => {
      const plan = { kind, rate: 8, count: 400, burstiness: 0.5, seed: 3 };
      const times = arrivalTimes(plan);
      expect(times).toEqual(times.toSorted((a, b) => a - b));
      expect(arrivalTimes(plan)).toEqual(times);
      expect(times.at(-1)).toBeCloseTo(50_000, 6);
    },
  );

  it('arrivals differ with the seed', () => {
    const plan = { kind: 'poisson', rate: 1, count: 5 } as const;
    expect(arrivalTimes({ ...plan, seed: 1 })).not.toEqual(arrivalTimes({ ...plan, seed: 2 }));
  });

  it('arrivals are as bursty as was asked for', () => {
    const of = (kind: (typeof ARRIVALS)[number], burstiness?: number) =>
      variation(gapsOf(arrivalTimes({ kind, rate: 1, count: 20_000, burstiness, seed: 11 })));
    expect(of('poisson')).toBeCloseTo(1, 1);
    expect(of('gamma', 0.25)).toBeCloseTo(2, 0.5);
    expect(of('gamma', 4)).toBeCloseTo(0.5, 1);
    expect(of('constant')).toBeCloseTo(0, 9);
  });
});

describe('RandomStream', () => {
  it('a shuffled list has the same items in another order', () => {
    const items = Array.from({ length: 50 }, (_, i) => i);
    const shuffled = new RandomStream(5).shuffled(items);
    expect(shuffled).not.toEqual(items);
    expect(shuffled.toSorted((a, b) => a - b)).toEqual(items);
  });
});
