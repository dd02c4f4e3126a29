import { expect, test } from 'vitest';
import type { RestartRun, TypingResult } from '../../../bench/typing/measure.ts';
import { TYPING } from '../../../bench/typing/report.ts';

const RUN: RestartRun = {
  deployment: 'disaggregated 1P:1D',
  context: 'compressed',
  promptOrder: 'spm',
  trials: 4,
  failed: 1,
  warmMs: 110,
  restartedMs: 132,
  computedMs: 1640,
  ratio: 1.2,
  ratioInterval: { low: 1.1, high: 1.3, coverage: 0.875 },
  promptTokens: 2010,
  warmCachedTokens: 1984,
  restoredTokens: 1968,
  records: [],
};

test('the report says what a restart cost beside what it would have cost without KV on disk, and how KV lay there', () => {
  const options = { pace: 'restart', debounceMs: 200, outputTokens: 16, timeoutMs: 1, repo: 'shop' } as const;
  const result: TypingResult = {
    model: 'tiny-coder',
    options: { ...options, kvDiskPrecision: 'int8' },
    runs: [],
    restarts: [RUN],
  };
  const artifact = { result } as unknown as Parameters<typeof TYPING.report>[0];
  const { markdown } = TYPING.report(artifact);
  expect(markdown).toContain('KV lies on disk as int8');
  const cells = markdown
    .split('\n')
    .find((line) => line.includes('disaggregated 1P:1D'))!
    .split('|');
  expect(cells.map((cell) => cell.trim()).slice(4, -1)).toEqual([
    ...['4', '1', '110', '132', '1.20 (1.10 to 1.30 at 88 %)'],
    ...['1640', '2010', '1984', '1968'],
  ]);
  expect(TYPING.headline(result)).toContain('1.20 (disaggregated 1P:1D, spm)');
});
