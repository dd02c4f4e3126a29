import { expect, it } from 'vitest';
import { START } from '../../../bench/start/report.ts';

const start = (data: 'new' | 'kept', completionMs: number) => ({
  data,
  servingMs: completionMs - 100,
  completionMs,
  contextMs: completionMs + 50,
  cpuMs: { ended: 500, gateway: 1000, ...(data === 'new' && { index: 700 }) },
});
const own = {
  version: 'abc',
  starts: [start('new', 4000), start('kept', 2000), start('kept', 2600), start('kept', 2200)],
  idle: [
    { name: 'gateway', cores: 0.0031, wakeups: 12 },
    { name: 'decode', cores: 0.001, wakeups: 4 },
  ],
};

it('the headline of a start has the medians of both kinds, and the process that takes most while idle', () => {
  expect(START.headline({ idleSeconds: 60, versions: [own] })).toBe(
    'first completion after 2.20 s, 4.00 s on an empty data folder; idle at most 0.31 % of a core a process',
  );
});

it('the report shows the versions side by side, with the sum of CPU time and its parts', () => {
  const other = { ...own, version: 'def', idle: [] };
  const { markdown } = START.report({ result: { idleSeconds: 60, versions: [own, other] } });
  expect(markdown).toContain('|  | abc, kept data folder | abc, new data folder | def, kept data folder |');
  expect(markdown).toContain('| first completion, s | 2.20 (2.00 to 2.60) | 4.00 (4.00 to 4.00) |');
  expect(markdown).toContain('| CPU time, s | 1.50 (1.50 to 1.50) | 2.20 (2.20 to 2.20) |');
  expect(markdown).toContain('| CPU time of index, s | 0 | 0.70 |');
  expect(markdown).toContain('| abc | gateway | 0.31 % | 12.0 |');
});
