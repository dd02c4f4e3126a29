import { describe, expect, test, vi } from 'vitest';
import { judge, notRun } from '../../../bench/drills/judge.ts';
import { DRILLS_BENCH } from '../../../bench/drills/report.ts';
import { stagesOf } from '../../../bench/drills/stages.ts';
import type { StreamRecord } from '../../../bench/drills/streams.ts';
import { findRedis } from '../../../bench/system/redis.ts';

vi.mock(import('../../../bench/system/redis.ts'), async (original) => ({ ...(await original()), findRedis: vi.fn() }));

const record = (change: Partial<StreamRecord>): StreamRecord => ({
  sentMs: 0,
  firstMs: 10,
  endedMs: 20,
  outcome: 'ok',
  lost: 0,
  doubled: 0,
  longestGapMs: 5,
  ...change,
});
const DRILL = { name: 'a drill' };

describe('a drill', () => {
  test('a drill that no request noticed is as promised', () => {
    const records = [record({}), record({ outcome: 'left', firstMs: undefined })];
    expect(judge(DRILL, records, [], '')).toMatchObject({ sent: 2, ok: 1, left: 1, failed: {}, broken: '' });
  });

  test.each([
    [{ outcome: 'failed', code: 'worker_lost' }, '1 requests failed'],
    [{ lost: 3 }, '3 tokens lost'],
    [{ doubled: 2 }, '2 tokens doubled'],
    [{ outcome: 'failed', code: 'x', doubled: 1 }, '1 tokens doubled; 1 requests failed'],
  ] as const)('a drill with a request of %j is not as promised', (change, broken) => {
    expect(judge(DRILL, [record(change)], [], '').broken).toBe(broken);
  });

  describe('a drill in which requests may fail with a code while it lasts, from 100 to 200 ms', () => {
    const failed = { outcome: 'failed', code: 'no_worker' } as const;
    const after = record({ sentMs: 210, firstMs: 220, endedMs: 230 });
    const verdict = (change: Partial<StreamRecord>) =>
      judge(
        { ...DRILL, mayFailWith: ['no_worker'] },
        [record({ ...failed, ...change }), after],
        [{ atMs: 100, mendedMs: 200 }],
        '',
      ).broken;

    test.each([
      ['under way when it began', { sentMs: 50, endedMs: 101 }],
      ['sent while it lasted', { sentMs: 199, endedMs: 300 }],
    ])('it excuses a request that was %s', (_, change) => {
      expect(verdict(change)).toBe('');
    });

    test.each<[string, Partial<StreamRecord>]>([
      ['failed before it', { sentMs: 50, endedMs: 99 }],
      ['was sent after it', { sentMs: 201, endedMs: 202 }],
      ['failed with another code', { code: 'internal', sentMs: 150, endedMs: 160 }],
      ['lost its connection', { code: 'connection', sentMs: 150, endedMs: 160 }],
    ])('it does not excuse a request that %s', (_, change) => {
      expect(verdict(change)).toBe('1 requests failed');
    });
  });

  describe('a drill that kills a gateway at 100 ms, and has it back at 200 ms', () => {
    const GATEWAY = { ...DRILL, mayFail: true };
    const failed = { outcome: 'failed', code: 'connection' } as const;
    const after = record({ sentMs: 210, firstMs: 220, endedMs: 230 });
    const verdict = (records: StreamRecord[], mendedMs: number | undefined = 200) =>
      judge(GATEWAY, records, [{ atMs: 100, mendedMs }], '');

    test('a killed gateway may lose the connections that it had, and those that came before it was back', () => {
      const struck = [record({ ...failed, endedMs: 101 }), record({ ...failed, sentMs: 199, endedMs: 205 })];
      const early = record({ ...failed, code: 'no_worker', sentMs: 180, endedMs: 181 });
      const { failed: counts, broken } = verdict([...struck, early, after]);
      expect({ counts, broken }).toEqual({ counts: { connection: 2, no_worker: 1 }, broken: '' });
    });

    test.each<[string, Partial<StreamRecord>]>([
      ['fails before the kill', { ...failed, endedMs: 99 }],
      ['fails after the gateway is back', { ...failed, sentMs: 201, endedMs: 202 }],
      ['fails for want of workers that the gateway had', { ...failed, code: 'no_worker', endedMs: 150 }],
      ['fails with another error', { ...failed, code: 'internal', sentMs: 150, endedMs: 160 }],
    ])('a killed gateway does not excuse a request that %s', (_, change) => {
      expect(verdict([record(change), after]).broken).toBe('1 requests failed');
    });

    test('a killed gateway may double no token', () => {
      expect(verdict([record({ doubled: 1 }), after]).broken).toBe('1 tokens doubled');
    });

    test.each([200, undefined])('a killed gateway must answer afterwards (back at %s)', (mendedMs) => {
      const records = [record({}), record({ ...failed, sentMs: 150, endedMs: 160 })];
      expect(verdict(records, mendedMs).broken).toBe('no request was answered after the last disturbance');
    });
  });

  test('a drill whose clients should leave fails if too few of them do', () => {
    const left = record({ outcome: 'left' });
    const verdict = (...records: StreamRecord[]) => judge({ ...DRILL, leaving: 0.6 }, records, [], '').broken;
    expect(verdict(left, record({}), record({}))).toBe('');
    expect(verdict(left, record({}), record({}), record({}))).toBe('only 1 of 4 clients left');
  });

  test('a drill that limits TTFT fails if one request waited longer', () => {
    const verdict = (firstMs: number) => judge({ ...DRILL, ttftWithinMs: 5_000 }, [record({ firstMs })], [], '').broken;
    expect(verdict(5_000)).toBe('');
    expect(verdict(5_001)).toBe('a request waited 5001 ms for its first token, more than 5000');
  });

  test('a drill in which requests keep their context fails if more than a tenth of them lose it', () => {
    const verdict = (lost: number) => {
      const records = Array.from({ length: 20 }, (_, i) => record({ degraded: i < lost ? 'over_budget' : undefined }));
      return judge({ ...DRILL, keepsContext: true }, records, [], '').broken;
    };
    expect(verdict(2)).toBe('');
    expect(verdict(3)).toBe('3 of 20 answers lost their context');
    expect(judge(DRILL, [record({ degraded: 'over_budget' })], [], '').broken).toBe('');
  });

  test('a drill has recovered when a request that was sent afterwards gets its first token', () => {
    const records = [
      record({ sentMs: 90, firstMs: 101 }), // sent before
      record({ sentMs: 110, outcome: 'failed', code: 'x', firstMs: 111 }),
      record({ sentMs: 120, firstMs: 400 }),
      record({ sentMs: 150, firstMs: 250 }),
      record({ sentMs: 600, firstMs: 610 }),
    ];
    const marks = [{ atMs: 100 }, { atMs: 590 }];
    expect(judge(DRILL, records, marks, '')).toMatchObject({ recoveryMs: 150, worstTtftMs: 280 });
  });
});

test('a drill that needs a redis-server says so if there is none', async () => {
  const folders = { data: 'unused', path: 'unused', repo: 'unused' };
  const stage = stagesOf({ bundle: 'unused' }, folders).find(({ drills }) => drills[0]?.name === 'kill -9 redis')!;
  const why = await stage.open([]);
  expect(findRedis).toHaveBeenCalledOnce();
  expect(why).toBe('no redis-server on PATH');
  const result = { drills: stage.drills.map((drill) => notRun(drill, String(why))) };
  const { markdown } = DRILLS_BENCH.report({ result });
  expect(markdown).toMatch(/^\| kill -9 redis \| 0 \| 0 .* \| not run: no redis-server on PATH \|$/m);
});
