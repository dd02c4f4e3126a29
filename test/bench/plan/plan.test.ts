import { describe, expect, it } from 'vitest';
import type { LoadResult } from '../../../bench/load/measure.ts';
import { arrivalTimes } from '../../../bench/measure/arrivals.ts';
import { type ClientRecord, summarise } from '../../../bench/measure/latency.ts';
import { MOST_SIMULATED, planPools, validate } from '../../../bench/plan/plan.ts';
import { simulate } from '../../../bench/plan/simulate.ts';

/** 100 ms per prompt; a decode step takes 10 ms, and 2 ms more for each further sequence. */
const COSTS = { slots: 4, prefillMs: () => 100, stepMs: (batch: number) => 8 + 2 * batch };

describe('planPools', () => {
  const request = { promptTokens: 500, outputTokens: 21, slo: { ttft: 300, tpot: 20 }, target: 0.9, seed: 1 };
  /** Attainment over other arrivals, after the ramp. */
  const attained = (pools: { prefill: number; decode: number }, rate: number, count: number) => {
    const arrivalsMs = arrivalTimes({ kind: 'poisson', rate, count, seed: 99 });
    const steady = simulate(COSTS, pools, { ...request, arrivalsMs }).slice(count / 10);
    return steady.filter(({ ttft, tpot }) => ttft <= 300 && (tpot ?? 0) <= 20).length / steady.length;
  };

  it.each([5, 20, 100])('a plan for %d requests/s meets the objective, and two prefill workers less do not', (rate) => {
    const plan = planPools(COSTS, { ...request, rate });
    expect(plan).toMatchObject({ feasible: true, rate, simulatedRate: rate });
    expect(plan.attainment).toBeGreaterThanOrEqual(0.9);
    expect(attained(plan, rate, 20_000)).toBeGreaterThan(0.87);
    // One worker less might do if it may be more than 90 % busy, which no plan allows.
    if (plan.prefill > 2) expect(attained({ ...plan, prefill: plan.prefill - 2 }, rate, 20_000)).toBeLessThan(0.9);
  });

  it('a load too large to simulate is planned as a fraction of itself, multiplied, and costs no more steps', () => {
    const planned = (rate: number) => {
      let steps = 0;
      const counting = {
        ...COSTS,
        stepMs: (batch: number) => {
          steps++;
          return COSTS.stepMs(batch);
        },
      };
      return { ...planPools(counting, { ...request, rate }), steps };
    };
    const [small, large, largest] = [planned(50), planned(2000), planned(10_000)];
    expect(largest.steps).toBeLessThan(2 * large.steps);
    expect(largest.simulatedRate).toBeCloseTo(0.9 * MOST_SIMULATED * 10, 6);
    for (const [plan, times] of [
      [large, 40],
      [largest, 200],
    ] as const) {
      // In a larger pool each request waits less: it needs no more workers than small pools, and enough to stay below
      // 90 %.
      expect(plan.prefill).toBeLessThanOrEqual(times * small.prefill);
      expect(plan.decode).toBeLessThanOrEqual(times * small.decode);
      expect(plan.prefill).toBeGreaterThan(plan.rate / 10);
      expect(plan.decode).toBeGreaterThan(0.6 * times * small.decode);
    }
    expect(largest.prefill / large.prefill).toBeCloseTo(5, 1);
    expect(largest.decode / large.decode).toBeCloseTo(5, 1);
    expect(attained(large, 2000, 40_000)).toBeGreaterThanOrEqual(0.9);
  });

  it('a plan meets an objective for the end of a request as well', () => {
    // A request alone takes 100 + 20 × 10 ms.
    const of = (e2e: number) => planPools(COSTS, { ...request, slo: { e2e }, rate: 20 });
    expect(of(299)).toMatchObject({ feasible: false, attainment: 0 });
    const [strict, loose] = [of(300), of(600)];
    expect(strict.attainment).toBeGreaterThanOrEqual(0.9);
    expect(strict.decode).toBeGreaterThan(loose.decode);
    expect(strict.prefill).toBeGreaterThanOrEqual(loose.prefill);
  });

  it('decode workers that have nothing to do are not multiplied', () => {
    const plan = planPools(COSTS, { ...request, outputTokens: 1, rate: 10_000 });
    expect(plan).toMatchObject({ feasible: true, decode: 1 });
  });

  it('a plan is not feasible if one request alone misses the objective', () => {
    expect(planPools(COSTS, { ...request, slo: { ttft: 99 }, rate: 1 }).feasible).toBe(false);
  });
});

describe('validate', () => {
  /** Three requests, of which the first does not count. */
  const records = [0, 1000, 1010].map((intendedMs, index): ClientRecord => {
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
      arrivals: 'poisson',
      burstiness: 1,
      requests: 3,
      seconds: undefined,
      warmup: 1,
      promptTokens: 500,
      outputTokens: 3,
      context: 'off',
      cancelRate: 0,
      cancelWithinMs: 0,
      timeoutMs: 1000,
      seed: 1,
    },
    deployments: [
      {
        deployment: 'disaggregated 1P:1D',
        probes: [{ rate: 3, passed: true, result: { summary: summarise(records, { warmup: 1, slo }), records } }],
        highestRate: 3,
      },
    ],
  };

  it('a validation simulates the arrivals that were measured', () => {
    // The second prompt waits 90 ms for the first, so the TTFTs are 100 and 190.
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

  it('a trace is not simulated, because its requests differ in length', () => {
    expect(validate(COSTS, { ...result, trace: { file: 't', requests: 3, clipped: 0 } })).toEqual([]);
  });
});
