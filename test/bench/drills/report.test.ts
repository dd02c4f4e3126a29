import { expect, test } from 'vitest';
import { countMix } from '../../../bench/drills/mix.ts';
import { SOAK_BENCH } from '../../../bench/drills/report.ts';
import type { StreamRecord } from '../../../bench/drills/streams.ts';

const WAITS = { count: 400, p50: 10, p90: 15, p99: 20 };

test('the report of a soak says how many requests of each kind it sent, how they ended, and how long they waited beside attackers', () => {
  const records = (...outcomes: StreamRecord['outcome'][]) =>
    outcomes.map((outcome) => ({ sentMs: 0, firstMs: 1, endedMs: 2, outcome, lost: 0, doubled: 0, longestGapMs: 0 }));
  const sent = {
    completions: records('ok', 'left'),
    keystrokes: records('left', 'left', 'ok'),
    choices: records('ok', 'failed'),
    uploads: [],
  };
  const counts = { sent: 7, ok: 3, left: 3, failed: {}, lostTokens: 0, doubledTokens: 0, restarts: 0, kills: 0 };
  const { markdown } = SOAK_BENCH.report({
    result: {
      ...{
        minutes: 1,
        endedEarly: true,
        undisturbedMinutes: 0.1,
        calmMinutes: 0.2,
        ...counts,
        mix: countMix(sent),
        trends: [],
      },
      honest: { rate: 1.5, capacity: 1_800 },
      ...{
        differences: [],
        broken: '',
        waits: {
          undisturbed: { ...WAITS, count: 401 },
          calm: WAITS,
          attacked: { ...WAITS, p99: 30 },
          struck: WAITS,
          byAttack: { flood: { ...WAITS, count: 7 } },
        },
      },
      attackers: [{ tenant: 'hostile-1', sent: 9, tokens: 8, refused: { quota_exceeded: 7 } }],
    },
  });
  expect(markdown).toContain('2 completions (1 ok, 1 left or superseded), 3 keystrokes (1 ok, 2 left or superseded)');
  expect(markdown).toContain('2 choices (1 ok, 0 left or superseded), 0 uploads (0 ok, 0 left or superseded)');
  expect(markdown).toContain('1800 output tokens/s when it was asked for more; at 1.50 requests/s');
  expect(markdown).toContain('1.00 minutes (ended early)');
  expect(markdown).toContain('| undisturbed | 401 | 10.0 | 15.0 | 20.0 |');
  expect(markdown).toContain('| attacked | 400 | 10.0 | 15.0 | 30.0 |');
  expect(markdown).toContain('| attacked by flood | 7 | 10.0 | 15.0 | 20.0 |');
  expect(markdown).toContain('Beside attackers p99 was 1.50 times');
  expect(markdown).toContain('hostile-1 sent 9 measured requests and got 8 tokens, refused: 7 quota_exceeded');
});
