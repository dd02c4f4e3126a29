import { describe, expect, test } from 'vitest';
import type { StreamRecord } from '../../../bench/drills/streams.ts';
import { compareWaits, JUDGED_FROM_COUNT, judgeWaits, type WaitComparison } from '../../../bench/drills/waits.ts';

const record = (sentMs: number, ttftMs: number | undefined, outcome: StreamRecord['outcome'] = 'ok'): StreamRecord => ({
  sentMs,
  firstMs: ttftMs === undefined ? undefined : sentMs + ttftMs,
  endedMs: sentMs + 1_000,
  outcome,
  lost: 0,
  doubled: 0,
  longestGapMs: 0,
});
const PHASES = { undisturbed: { fromMs: 100, toMs: 500 }, calm: { fromMs: 500, toMs: 1_000 } };

describe('the waits of honest requests', () => {
  test('a request counts on the side of the time in which it waited, and on neither if it saw both', () => {
    const before = [record(50, 1), record(200, 8), record(490, 20)];
    const records = [...before, record(600, 10), record(990, 20), record(1_000, 30), record(2_000, 50)];
    const { undisturbed, calm, attacked, struck } = compareWaits(records, PHASES, [], []);
    expect([undisturbed.count, calm.count, attacked.count, struck.count]).toEqual([1, 1, 2, 0]);
    expect([undisturbed.p50, calm.p50, attacked.p50]).toEqual([8, 10, 40]);
  });

  test('a request that waited while a worker was away is counted by itself', () => {
    const strikes = [{ fromMs: 2_000, toMs: 3_000 }];
    const beside = [record(1_990, 5), record(3_000, 5)];
    const during = [record(1_990, 20), record(2_500, 5), record(2_990, 500)];
    const { attacked, struck } = compareWaits([...beside, ...during], PHASES, strikes, []);
    expect([attacked.count, struck.count]).toEqual([2, 3]);
  });

  test('a request counts for every attack that went on while it waited', () => {
    const turns = [
      { attack: 'flood', fromMs: 1_000, toMs: 2_000 },
      { attack: 'flood', fromMs: 2_000, toMs: 3_000 },
      { attack: 'drip', fromMs: 1_500, toMs: 2_500 },
      { attack: 'later', fromMs: 9_000, toMs: 9_500 },
    ];
    const records = [record(200, 10), record(1_100, 20), record(1_990, 40), record(2_600, 80)];
    const { byAttack } = compareWaits(records, PHASES, [{ fromMs: 2_650, toMs: 2_700 }], turns);
    expect(Object.entries(byAttack).map(([attack, { count, p50 }]) => [attack, count, p50])).toEqual([
      ['flood', 2, 30],
      ['drip', 1, 40],
      ['later', 0, NaN],
    ]);
  });

  test('a request that did not end well, or got no token, does not count', () => {
    const records = [record(200, 10, 'left'), record(200, 10, 'failed'), record(200, undefined)];
    expect(compareWaits(records, PHASES, [], []).undisturbed.count).toBe(0);
  });

  const waits = (p99: number, count = JUDGED_FROM_COUNT): WaitComparison['calm'] => ({ count, p50: 1, p90: 2, p99 });
  test.each([
    [waits(100), waits(150), ''],
    [waits(100), waits(151), 'TTFT p99 beside attackers is 1.51 times that of the calm time, more than 1.5'],
    [waits(100, JUDGED_FROM_COUNT - 1), waits(900), ''],
    [waits(100), waits(900, JUDGED_FROM_COUNT - 1), ''],
  ])('p99 may rise by half, and is judged only if it rests on enough requests (%j, %j)', (calm, attacked, broken) => {
    expect(judgeWaits({ calm, attacked })).toBe(broken);
  });

  test('the rise of p99 has an interval: narrow where requests wait alike, and wide where two waits make it', () => {
    const calm = Array.from({ length: 400 }, (_, i) => record(600 + (i % 300), 10 + (i % 4)));
    const attacked = (longest: number) =>
      Array.from({ length: 400 }, (_, i) => record(2_000 + i, i < 2 ? longest : 10 + (i % 4)));
    const riseOf = (longest: number) => compareWaits([...calm, ...attacked(longest)], PHASES, [], []).rise!;
    const even = riseOf(13);
    expect([even.mean, even.low, even.high]).toEqual([1, 1, 1]);
    const uneven = riseOf(1_300);
    expect([uneven.mean, uneven.low]).toEqual([1, 1]);
    expect(uneven.high).toBeGreaterThan(50);
    expect(compareWaits(calm, PHASES, [], []).rise).toBeUndefined();
    const verdict = judgeWaits({ calm: waits(100), attacked: waits(160), rise: { mean: 1.6, low: 1.2, high: 2.1 } });
    expect(verdict).toContain('1.60 (95 %: 1.20 to 2.10) times');
  });
});
