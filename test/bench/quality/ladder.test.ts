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
async function artifact(name: string, result: Partial<QualityResult>, bench = 'evaluate'): Promise<string> {
  const path = join(dir, `${name}.json`);
  await writeFile(path, JSON.stringify({ format: 1, bench, result: { ...own, ...result } }));
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
  expect(point!.data).toEqual([[ttft.median, 100 * scores.editSimilarity.mean]]);
  expect(interval!.data.map(([, value]) => value)).toEqual([
    100 * scores.editSimilarity.low,
    100 * scores.editSimilarity.high,
  ]);
  const { ce } = own.figures[2]!;
  const [ofCe, ceInterval] = seriesOf(own, 1).slice(4);
  expect(ofCe!.data).toEqual([[ttft.median, ce.mean]]);
  expect(ceInterval!.data.map(([, value]) => value)).toEqual([ce.low, ce.high]);
});

it('rungs of earlier runs stand beside, each once, with a name of its own and what it recovers in its own run', async () => {
  const files = [await artifact('two', { softPerChunk: 2 }), await artifact('four', { softPerChunk: 4 })];
  const beside = await rungsBeside(files, own.survey);
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
  const beside = await rungsBeside([await artifact('other', { model: 'other-coder' })], own.survey);
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
  await expect(rungsBeside([file], own.survey)).rejects.toMatchObject({
    code: 'config_invalid',
    message: expect.stringMatching(message),
  });
});
