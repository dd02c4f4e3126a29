/** The ladder: rungs of this run and of earlier ones on the same samples, as a table and a chart. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { ladderCharts, ladderTable, rungsBeside, rungsOf } from '../../../bench/quality/ladder.ts';
import { QUALITY } from '../../../bench/quality/report.ts';
import type { QualityResult } from '../../../bench/quality/result.ts';
import { temporaryFolder } from '../../support/models.ts';
import { qualityResult } from '../../support/quality-result.ts';

const dir = await temporaryFolder();
const own = qualityResult();
/** How the new run and the earlier ones evaluate. */
const SETTINGS = {
  promptTokens: 128,
  textTokens: 256,
  maxTokens: 16,
  topK: 5,
  context: 'file',
  retrievers: ['jaccard'],
  promptOrder: 'psm',
};
async function artifact(
  name: string,
  result: Partial<QualityResult>,
  bench = 'evaluate',
  settings: { readonly [Name in keyof typeof SETTINGS]?: unknown } = {},
): Promise<string> {
  const path = join(dir, `${name}.json`);
  await writeFile(
    path,
    JSON.stringify({ format: 1, bench, settings: { ...SETTINGS, ...settings }, result: { ...own, ...result } }),
  );
  return path;
}
const seriesOf = (result: QualityResult, chart = 0) =>
  ladderCharts(result)[chart]!.option.series as { name: string; type: string; data: [number, number][] }[];

it('a run alone has a point and an interval for each arm, and no table of a ladder', () => {
  expect(ladderTable(own)).toBeUndefined();
  expect(QUALITY.report({ result: own }).markdown).not.toContain('The ladder');
  expect(seriesOf(own).map(({ name, type }) => `${name} ${type}`)).toEqual(
    ['off', 'text', 'compressed'].flatMap((name) => [`${name} scatter`, `${name} line`]),
  );
  const [point, interval] = seriesOf(own).slice(4);
  const { scores, ttft } = own.figures[2]!;
  const times = ttft.median / own.figures[0]!.ttft.median;
  expect(point!.data).toEqual([[times, 100 * scores.editSimilarity.mean]]);
  expect(interval!.data.map(([, value]) => value)).toEqual([
    100 * scores.editSimilarity.low,
    100 * scores.editSimilarity.high,
  ]);
  const { ce } = own.figures[2]!;
  const [ofCe, ceInterval] = seriesOf(own, 1).slice(4);
  expect(ofCe!.data).toEqual([[times, ce.mean]]);
  expect(ceInterval!.data.map(([, value]) => value)).toEqual([ce.low, ce.high]);
});

it('rungs of earlier runs stand beside, each once, with a name of its own and what it recovers in its own run', async () => {
  const files = [await artifact('two', { softPerChunk: 2 }), await artifact('four', { softPerChunk: 4 })];
  const beside = await rungsBeside(files, own.survey, SETTINGS);
  expect(beside.map(({ arm, softPerChunk }) => [arm, softPerChunk])).toEqual([
    ['compressed', 2],
    ['compressed', 4],
  ]);
  const ladder = { ...own, beside };
  expect(
    seriesOf(ladder)
      .filter(({ type }) => type === 'scatter')
      .map(({ name }) => name),
  ).toEqual(['off', 'text', 'compressed', 'compressed, 2 per chunk', 'compressed, 4 per chunk']);
  const { markdown } = QUALITY.report({ result: ladder });
  expect(markdown).toContain(ladderTable(ladder));
  expect(markdown).toMatch(/\| compressed, 4 per chunk \| 2010 \| 10\.0 \| 75\.00/);
  expect(rungsOf(own).find(({ arm }) => arm === 'text')!.recovered).toBeNull();
});

it('rungs of another model are told by its name', async () => {
  const beside = await rungsBeside([await artifact('other', { model: 'other-coder' })], own.survey, SETTINGS);
  const names = seriesOf({ ...own, beside }).map(({ name }) => name);
  expect(names).toContain('compressed (tiny-coder)');
  expect(names).toContain('compressed (other-coder)');
});

it.each([
  ['of another bench', {}, 'load', /is an artifact of load, not of evaluate/],
  ['of other samples', { survey: { ...own.survey, digest: 'e'.repeat(64) } }, 'evaluate', /4 samples of eeee/],
  ['of fewer samples', { survey: { ...own.survey, taken: 3 } }, 'evaluate', /evaluates 3 samples .* this run 4/],
])('an artifact %s is refused', async (name, result, bench, message) => {
  const file = await artifact(name, result, bench);
  await expect(rungsBeside([file], own.survey, SETTINGS)).rejects.toMatchObject({
    code: 'config_invalid',
    message: expect.stringMatching(message),
  });
});

it.each([
  ['promptTokens', 129, '--prompt-tokens 129, and this run 128: give --prompt-tokens 129'],
  ['textTokens', 512, '--text-tokens 512, and this run 256'],
  ['maxTokens', 50, '--max-tokens 50, and this run 16'],
  ['topK', 10, '--top-k 10, and this run 5'],
  ['context', 'index', '--context index, and this run file'],
  ['retrievers', ['bm25'], '--retrievers bm25, and this run jaccard'],
  ['promptOrder', 'spm', '--prompt-order spm, and this run psm'],
])('an artifact with another %s is refused', async (name, value, message) => {
  const file = await artifact(`other-${name}`, {}, 'evaluate', { [name]: value });
  await expect(rungsBeside([file], own.survey, SETTINGS)).rejects.toMatchObject({
    code: 'config_invalid',
    message: expect.stringContaining(message),
  });
});

it('an artifact from before an option existed has its default, and its refusal names artifact and flag', async () => {
  const file = await artifact('before', {}, 'evaluate', { promptOrder: undefined });
  expect(await rungsBeside([file], own.survey, SETTINGS)).toHaveLength(1);
  await expect(rungsBeside([file], own.survey, { ...SETTINGS, promptOrder: 'spm' })).rejects.toMatchObject({
    code: 'config_invalid',
    message: `--beside ${file} has --prompt-order psm, and this run spm: give --prompt-order psm, or leave it out`,
  });
});

it('the time of a rung is a multiple of that without context in its own run, whatever load that was under', async () => {
  const slow = own.figures.map((each) => ({ ...each, ttft: { median: 10 * each.ttft.median, low: 0, high: 9_999 } }));
  const beside = await rungsBeside([await artifact('slow', { softPerChunk: 2, figures: slow })], own.survey, SETTINGS);
  const ladder = { ...own, beside };
  const times = (name: string) => seriesOf(ladder).find((each) => each.name === name)!.data[0]![0];
  expect(times('compressed, 2 per chunk')).toBeCloseTo(times('compressed'));
  expect(times('off')).toBe(1);
  expect(ladderCharts(ladder)[0]!.option.xAxis).toMatchObject({ name: expect.stringContaining('multiple') });
  expect(ladderTable(ladder)).toMatch(/\| TTFT \/ off \|\n[^\n]*\n\| off .*\| 1\.00 × \|/);
});

it('a run without an arm that has no context has no charts of time', () => {
  const figures = own.figures.filter(({ arm }) => arm !== 'off');
  expect(ladderCharts({ ...own, figures })).toEqual([]);
  const { markdown } = QUALITY.report({ result: { ...own, figures } });
  expect(markdown).toContain('- In no chart against TTFT, because their runs have no arm off: text, compressed.');
});

it('rungs without a time, and those whose time has no retrieval in it, are named below the tables', async () => {
  const figures = own.figures.filter(({ arm }) => arm === 'compressed');
  const beside = await rungsBeside([await artifact('no-off', { softPerChunk: 2, figures })], own.survey, SETTINGS);
  const pruned = own.figures.map((each) => (each.arm === 'compressed' ? { ...each, arm: 'pruned' } : each));
  const { markdown } = QUALITY.report({ result: { ...own, figures: pruned, beside } });
  expect(markdown).toContain('their runs have no arm off: compressed, 2 per chunk.');
  expect(markdown).toContain('- No retrieval and no rewriting is in the TTFT of pruned, nor in');
  expect(QUALITY.report({ result: own }).markdown).not.toMatch(/In no chart|No retrieval/);
});
