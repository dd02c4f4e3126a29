import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { arrivalTimes } from '../../bench/measure/arrivals.ts';
import { fitCosts } from '../../bench/plan/cost-model.ts';
import { EventQueue } from '../../bench/plan/event-queue.ts';
import { planPools } from '../../bench/plan/plan.ts';
import { simulate } from '../../bench/plan/simulate.ts';

/** 100 ms per prompt; a step takes 10 ms and 2 ms more for each further sequence. */
const COSTS = { slots: 4, prefillMs: () => 100, stepMs: (batch: number) => 8 + 2 * batch };

describe('EventQueue', () => {
  it('gives back everything in order of time, equal times in order of pushing', () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: 9 })), (times) => {
        const queue = new EventQueue<number>();
        for (const [i, at] of times.entries()) queue.push(at, i);
        const popped: { at: number; value: number }[] = [];
        for (let next = queue.pop(); next; next = queue.pop()) popped.push({ at: next.at, value: next.value });
        const wanted = times.map((at, value) => ({ at, value })).toSorted((a, b) => a.at - b.at || a.value - b.value);
        expect(popped).toEqual(wanted);
      }),
    );
  });
});

describe('simulate', () => {
  const load = { promptTokens: 500, outputTokens: 3 };

  it('one request alone takes its prompt and its steps', () => {
    expect(simulate(COSTS, { prefill: 1, decode: 1 }, { ...load, arrivalsMs: [0] })).toEqual([{ ttft: 100, tpot: 10 }]);
  });

  it('prompts wait for one another, unless there is a second worker', () => {
    const arrivalsMs = [0, 10];
    const ttfts = (prefill: number) =>
      simulate(COSTS, { prefill, decode: 1 }, { ...load, arrivalsMs }).map(({ ttft }) => ttft);
    expect(ttfts(1)).toEqual([100, 190]);
    expect(ttfts(2)).toEqual([100, 100]);
  });

  it('sequences share steps, and wait where all slots are taken', () => {
    const costs = { ...COSTS, prefillMs: () => 0 };
    const tpots = (slots: number) =>
      simulate({ ...costs, slots }, { prefill: 1, decode: 1 }, { ...load, arrivalsMs: [0, 0] }).map(({ tpot }) => tpot);
    // The first step has begun with one sequence; the other joins after it (10 ms), and leaves after two more.
    expect(tpots(4)).toEqual([(10 + 12) / 2, (10 + 12 + 10) / 2]);
    expect(tpots(1)).toEqual([10, 20]);
  });

  it('one output token needs no decode worker', () => {
    const once = { promptTokens: 500, outputTokens: 1, arrivalsMs: [0] };
    expect(simulate(COSTS, { prefill: 1, decode: 1 }, once)).toEqual([{ ttft: 100, tpot: undefined }]);
  });
});

describe('fitCosts', () => {
  const rates = { model: 'm', coresPerWorker: [1, 1] as const, slots: 8 };

  it('follows the measurements, between and beyond them', () => {
    const costs = fitCosts({
      ...rates,
      prefill: [250, 500, 1000, 2000].map((tokens) => ({ tokens, ms: 5 + 0.6 * tokens + 1e-5 * tokens ** 2 })),
      decode: [1, 2, 4].map((batch) => ({ batch, ms: 8 + 2 * batch })),
    });
    expect(costs.prefillMs(1500)).toBeCloseTo(5 + 900 + 22.5, 6);
    expect([1, 3, 4, 10].map(costs.stepMs)).toEqual([10, 14, 16, 28]);
  });

  it('makes do with one measurement of each', () => {
    const costs = fitCosts({ ...rates, prefill: [{ tokens: 500, ms: 70 }], decode: [{ batch: 1, ms: 9 }] });
    expect([costs.prefillMs(100), costs.stepMs(8)]).toEqual([70, 9]);
  });
});

describe('planPools', () => {
  const request = { promptTokens: 500, outputTokens: 21, slo: { ttft: 300, tpot: 20 }, target: 0.9, seed: 1 };

  it('meets the objective, and one worker of either kind less does not', () => {
    const plan = planPools(COSTS, { ...request, rate: 20 });
    expect(plan.feasible).toBe(true);
    expect(plan.attainment).toBeGreaterThanOrEqual(0.9);
    const arrivalsMs = arrivalTimes({ kind: 'poisson', rate: 20, count: 400, seed: 1 });
    const fewer = simulate(COSTS, { prefill: plan.prefill - 1, decode: plan.decode }, { ...request, arrivalsMs });
    const met = fewer.filter(({ ttft, tpot }) => ttft <= 300 && (tpot ?? 0) <= 20).length;
    expect(met / fewer.length).toBeLessThan(0.9);
  });

  it('grows with the load', () => {
    const [small, large] = [10, 1000].map((rate) => planPools(COSTS, { ...request, rate }));
    // 1000 prompts of 100 ms each second keep 100 workers busy: that would be a queue without end.
    expect(large!.prefill).toBeGreaterThan(100);
    expect(large!.prefill).toBeGreaterThan(30 * small!.prefill);
    expect(large!.feasible).toBe(true);
  });

  it('says so where no number of workers helps', () => {
    expect(planPools(COSTS, { ...request, slo: { ttft: 99 }, rate: 1 }).feasible).toBe(false);
  });
});
