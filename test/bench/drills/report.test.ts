import { expect, test } from 'vitest';
import { countMix } from '../../../bench/drills/mix.ts';
import { SOAK_BENCH } from '../../../bench/drills/report.ts';
import type { StreamRecord } from '../../../bench/drills/streams.ts';

test('the report of a soak says how many requests of each kind it sent, and how they ended', () => {
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
    result: { minutes: 1, ...counts, mix: countMix(sent), trends: [], differences: [], broken: '' },
  });
  expect(markdown).toContain('2 completions (1 ok, 1 left or superseded), 3 keystrokes (1 ok, 2 left or superseded)');
  expect(markdown).toContain('2 choices (1 ok, 0 left or superseded), 0 uploads (0 ok, 0 left or superseded)');
});
