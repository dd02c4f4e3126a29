/** A run without a validation sees on some of its own samples whether its projector has collapsed. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { writeSafetensors } from '../../../services/lib/model/checkpoint/safetensors-writer.ts';
import { projectorShapes } from '../../../services/lib/model/graph/projector.ts';
import { cosineWords } from '../../../training/run/collapse.ts';
import { train } from '../../../training/run/train.ts';
import {
  never,
  resultsOf,
  silent,
  smallRow,
  smallRuns,
  TRAINING_TIMEOUT_MS,
  trained,
  writeRows,
} from '../../support/training.ts';

const { dir, options } = await smallRuns(4);
const looksOf = async (to: string) => {
  const lines = (await resultsOf({ to })).log.map((line) => JSON.parse(line));
  return lines.filter((figures) => 'meanCosine' in figures);
};

test('its log, its report and its page have the cosines of its chunks and soft tokens', {
  timeout: TRAINING_TIMEOUT_MS,
}, async () => {
  const run = options('apart', { every: 2, validation: undefined });
  const { report } = await trained(run);
  const looks = await looksOf(run.to);
  expect(looks.map(({ step, collapsed }) => [step, collapsed])).toEqual([
    [0, 0],
    [2, 0],
    [3, 0],
  ]);
  const { meanCosine, meanCosineOfEmbeddings } = looks.at(-1);
  expect(meanCosine).not.toBe(looks[0].meanCosine); // the projector has changed, and not the encoder
  expect(meanCosineOfEmbeddings).toBe(looks[0].meanCosineOfEmbeddings);
  expect(report.cosines).toEqual({ meanCosine, meanCosineOfEmbeddings });
  expect(report.validation).toBeUndefined();
  expect((await trained(run)).report).toEqual(report); // a run that is complete says it again
  const page = await readFile(join(run.to, 'report.html'), 'utf8');
  expect(page).toContain('Pairwise cosines of 8 chunks of samples that are trained on');
});

test('where no sample has two soft tokens nothing is claimed', { timeout: TRAINING_TIMEOUT_MS }, async () => {
  const rows = [0, 1].map((i) => ({ ...smallRow(i), crossfile_array: [`# b.py\nb${i} = ${i}`] }));
  const data = await writeRows(join(dir, 'one-chunk.jsonl'), rows);
  for (const validation of [undefined, data]) {
    const run = options(`one-chunk-${validation === undefined}`, { data, validation, steps: 1 });
    const { report } = await trained(run);
    expect(report.cosines).toMatchObject({ meanCosine: null, meanCosineOfEmbeddings: null });
    const looks = await looksOf(run.to);
    expect(looks.map(({ meanCosine, collapsed }) => [meanCosine, collapsed])).toEqual([
      [null, null],
      [null, null],
    ]);
    expect(await readFile(join(run.to, 'report.html'), 'utf8')).not.toContain('Mean pairwise cosine');
    expect(cosineWords(report.cosines!)).toMatch(/^mean cosine not measured/);
    expect((await trained(run)).report).toEqual(report);
  }
});

test('a projector that says the same of every chunk is an alarm', { timeout: TRAINING_TIMEOUT_MS }, async () => {
  const shapes = [...projectorShapes({ widths: [64, 64, 64] })];
  const flat = shapes.map(([name, shape]) => {
    const data = new Float32Array(shape.reduce((product, size) => product * size, 1));
    return [name, { shape, data: name === 'linear_2.bias' ? data.fill(0.1) : data }] as const;
  });
  const from = join(dir, 'flat.safetensors');
  await writeSafetensors(from, new Map(flat));
  const run = options('collapsed', { from, validation: undefined, steps: 1 });
  const warned: string[] = [];
  await train(run, { ...silent(), warn: (text) => void warned.push(text) }, never);
  expect(warned[0]).toMatch(
    /^step 0: the projector has collapsed: its soft tokens have a mean cosine of 1\.000; raise --al/,
  );
  expect((await looksOf(run.to)).map(({ collapsed }) => collapsed)).toEqual([1, 1]);
});
