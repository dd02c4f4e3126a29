import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it, onTestFinished } from 'vitest';
import { axes, drawCharts } from '../../../bench/report/chart.ts';

it('a chart is drawn as SVG and as nothing else', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-chart-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  const option = axes('Title', 'x', 'y', { series: [{ type: 'line', data: [[1, 2]] }] });
  expect(await drawCharts(dir, [{ name: 'chart', option }])).toBe(true);
  expect(await readdir(dir)).toEqual(['chart.svg']);
  expect(await readFile(join(dir, 'chart.svg'), 'utf8')).toMatch(/^<svg[\s\S]*Title/);
});
