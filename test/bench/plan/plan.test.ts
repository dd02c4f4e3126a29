import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { LoadResult } from '../../../bench/load/measure.ts';
import { arrivalTimes } from '../../../bench/measure/arrivals.ts';
import { type RequestRecord, summarise } from '../../../bench/measure/latency.ts';
import { fitCosts } from '../../../bench/plan/cost-model.ts';
import { EventQueue } from '../../../bench/plan/event-queue.ts';
import { MOST_SIMULATED, planPools, validate } from '../../../bench/plan/plan.ts';
import { overlapOf } from '../../../bench/plan/rates.ts';
import { simulate } from '../../../bench/plan/simulate.ts';

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
    expect(simulate(COSTS, { prefill: 1, decode: 1 }, { ...load, arrivalsMs: [0] })).toEqual([
      { ttft: 100, tpot: 10, e2e: 120 },
    ]);
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
    expect(simulate(COSTS, { prefill: 1, decode: 1 }, once)).toEqual([{ ttft: 100, tpot: undefined, e2e: 100 }]);
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
  /** Of other arrivals, for some time, after the ramp. */
  const attained = (pools: { prefill: number; decode: number }, rate: number, count: number) => {
    const arrivalsMs = arrivalTimes({ kind: 'poisson', rate, count, seed: 99 });
    const steady = simulate(COSTS, pools, { ...request, arrivalsMs }).slice(count / 10);
    return steady.filter(({ ttft, tpot }) => ttft <= 300 && (tpot ?? 0) <= 20).length / steady.length;
  };

  it.each([5, 20, 100])('meets the objective at %d requests/s, and two prompt workers less do not', (rate) => {
    const plan = planPools(COSTS, { ...request, rate });
    expect(plan).toMatchObject({ feasible: true, rate, simulatedRate: rate });
    expect(plan.attainment).toBeGreaterThanOrEqual(0.9);
    expect(attained(plan, rate, 20_000)).toBeGreaterThan(0.87);
    // One less might do where it is above 90 % busy, which no plan is.
    if (plan.prefill > 2) expect(attained({ ...plan, prefill: plan.prefill - 2 }, rate, 20_000)).toBeLessThan(0.9);
  });

  it('a load too large to simulate is a part of it, multiplied: at least as good, and in seconds', () => {
    const startMs = performance.now();
    const plans = [50, 2000, 10_000].map((rate) => planPools(COSTS, { ...request, rate }));
    expect(performance.now() - startMs).toBeLessThan(5000);
    const [small, large, largest] = plans as [(typeof plans)[0], (typeof plans)[0], (typeof plans)[0]];
    expect(largest.simulatedRate).toBeCloseTo(0.9 * MOST_SIMULATED * 10, 6);
    for (const [plan, times] of [
      [large, 40],
      [largest, 200],
    ] as const) {
      // A larger pool waits less for each request: no more than so many small ones, no less than what keeps it busy.
      expect(plan.prefill).toBeLessThanOrEqual(times * small.prefill);
      expect(plan.decode).toBeLessThanOrEqual(times * small.decode);
      expect(plan.prefill).toBeGreaterThan(plan.rate / 10);
      expect(plan.decode).toBeGreaterThan(0.6 * times * small.decode);
    }
    expect(largest.prefill / large.prefill).toBeCloseTo(5, 1);
    expect(largest.decode / large.decode).toBeCloseTo(5, 1);
    expect(attained(large, 2000, 40_000)).toBeGreaterThanOrEqual(0.9);
  });

  it('heeds the end of a request too', () => {
    // Alone: 100 + 20 x 10.
    const of = (e2e: number) => planPools(COSTS, { ...request, slo: { e2e }, rate: 20 });
    expect(of(299)).toMatchObject({ feasible: false, attainment: 0 });
    const [strict, loose] = [of(300), of(600)];
    expect(strict.attainment).toBeGreaterThanOrEqual(0.9);
    expect(strict.decode).toBeGreaterThan(loose.decode);
    expect(strict.prefill).toBeGreaterThanOrEqual(loose.prefill);
  });

  it('does not multiply decode workers that have nothing to do', () => {
    const plan = planPools(COSTS, { ...request, outputTokens: 1, rate: 10_000 });
    expect(plan).toMatchObject({ feasible: true, decode: 1 });
  });

  it('says so where no number of workers helps', () => {
    expect(planPools(COSTS, { ...request, slo: { ttft: 99 }, rate: 1 }).feasible).toBe(false);
  });
});

describe('validate', () => {
  /** Three requests; the first does not count. */
  const records = [0, 1000, 1010].map((intendedMs, index): RequestRecord => {
    const chunksMs = [110, 120, 130].map((ms) => intendedMs + ms);
    const counts = { promptTokens: 500, softTokens: 0, cachedTokens: 0, outputTokens: 3 };
    return { index, intendedMs, sentMs: intendedMs, chunksMs, endedMs: chunksMs[2]!, ...counts, outcome: 'ok' };
  });
  const slo = { ttft: 150 };
  const result: LoadResult = {
    model: 'm',
    slo,
    target: 0.9,
    workload: {
      ...{ arrivals: 'poisson', burstiness: 1, requests: 3, warmup: 1, seed: 1, context: 'off' },
      ...{ promptTokens: 500, outputTokens: 3, cancelRate: 0, cancelWithinMs: 0, timeoutMs: 1000 },
    },
    deployments: [
      {
        deployment: 'disaggregated 1P:1D',
        probes: [{ rate: 3, passed: true, result: { summary: summarise(records, { warmup: 1, slo }), records } }],
        highestRate: 3,
      },
    ],
  };

  it('simulates the arrivals that were measured', () => {
    // The second prompt waits 90 ms for the first: TTFT 100 and 190.
    const [validation] = validate(COSTS, result);
    expect(validation!.rate).toBe(3);
    expect(validation!.figures.map(({ name, measured }) => [name, measured])).toEqual([
      ['TTFT p50, ms', 110],
      ['TTFT p90, ms', 110],
      ['TPOT p50, ms', 10],
      ['end to end p50, ms', 130],
      ['attainment, %', 100],
    ]);
    const simulated = validation!.figures.map(({ simulated }) => simulated);
    for (const [i, wanted] of [145, 181, 10, 165, 50].entries()) expect(simulated[i]).toBeCloseTo(wanted, 6);
  });

  it('says nothing of a trace, whose requests have no one length', () => {
    expect(validate(COSTS, { ...result, trace: { file: 't', requests: 3, clipped: 0 } })).toEqual([]);
  });
});

describe('overlapOf', () => {
  it('counts what lies between the last start and the first end', () => {
    const records = [{ chunksMs: [0, 10, 30, 50, 70] }, { chunksMs: [25, 30, 50, 70, 80] }];
    expect(overlapOf(records)).toEqual({ ms: 17, anyMs: 15.625, steps: 2.5, startsMs: 25 });
  });

  it('knows where nothing does', () => {
    expect(overlapOf([{ chunksMs: [0, 10] }, { chunksMs: [20, 30] }])).toMatchObject({ ms: undefined, startsMs: 20 });
  });
});
