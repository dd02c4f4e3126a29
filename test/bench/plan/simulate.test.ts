import { describe, expect, it } from 'vitest';
import { simulate } from '../../../bench/plan/simulate.ts';

/** 100 ms per prompt; a decode step takes 10 ms, and 2 ms more for each further sequence. */
const COSTS = { slots: 4, prefillMs: () => 100, stepMs: (batch: number) => 8 + 2 * batch };

describe('simulate', () => {
  const load = { promptTokens: 500, outputTokens: 3 };

  it('a request alone takes the time of its prompt and of its decode steps', () => {
    expect(simulate(COSTS, { prefill: 1, decode: 1 }, { ...load, arrivalsMs: [0] })).toEqual([
      { ttft: 100, tpot: 10, e2e: 120 },
    ]);
  });

  it('prompts wait for one another unless there is a second prefill worker', () => {
    const arrivalsMs = [0, 10];
    const ttfts = (prefill: number) =>
      simulate(COSTS, { prefill, decode: 1 }, { ...load, arrivalsMs }).map(({ ttft }) => ttft);
    expect(ttfts(1)).toEqual([100, 190]);
    expect(ttfts(2)).toEqual([100, 100]);
  });

  it('sequences share decode steps, and wait if all slots are taken', () => {
    const costs = { ...COSTS, prefillMs: () => 0 };
    const tpots = (slots: number) =>
      simulate({ ...costs, slots }, { prefill: 1, decode: 1 }, { ...load, arrivalsMs: [0, 0] }).map(({ tpot }) => tpot);
    // The first step has begun with one sequence; the other joins after it (10 ms), and leaves after two more.
    expect(tpots(4)).toEqual([(10 + 12) / 2, (10 + 12 + 10) / 2]);
    expect(tpots(1)).toEqual([10, 20]);
  });

  it('a request of one output token needs no decode worker', () => {
    const once = { promptTokens: 500, outputTokens: 1, arrivalsMs: [0] };
    expect(simulate(COSTS, { prefill: 1, decode: 1 }, once)).toEqual([{ ttft: 100, tpot: undefined, e2e: 100 }]);
  });
});
