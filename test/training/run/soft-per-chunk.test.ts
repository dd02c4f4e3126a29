/** A projector that is trained for several soft tokens per chunk, from samples to the bundle that serves it. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { softPerChunkOf } from '../../../services/lib/model/bundle/bundle.ts';
import { exportBundle } from '../../../services/lib/model/bundle/export-bundle.ts';
import type { TrainOptions } from '../../../training/run/settings.ts';
import { train } from '../../../training/run/train.ts';
import { temporaryFolder } from '../../support/models.ts';
import {
  never,
  resultsOf,
  silent,
  smallOptions,
  smallRow,
  TRAINING_TIMEOUT_MS,
  writeRows,
} from '../../support/training.ts';

const dir = await temporaryFolder();
const data = await writeRows(join(dir, 'train.jsonl'), [0, 1, 2, 3].map(smallRow));
const validation = await writeRows(join(dir, 'valid.jsonl'), [10].map(smallRow));
const options = (name: string, softPerChunk: 1 | 2 | 4 | undefined, changes: Partial<TrainOptions> = {}) => ({
  ...smallOptions({ data, validation, to: join(dir, name) }),
  encoderChoices: { maxTokens: 32, softPerChunk },
  ...changes,
});

test('the run says how many soft tokens a chunk has, the export takes that over, and a run goes on with it alone', {
  timeout: TRAINING_TIMEOUT_MS,
}, async () => {
  const run = options('two', 2);
  const { projector } = await train(run, silent(), never);
  const { encoder } = JSON.parse(await readFile(join(projector, 'config.json'), 'utf8'));
  expect(encoder).toMatchObject({ soft_per_chunk: 2, max_tokens: 32 });
  const bundle = { projector, to: join(dir, 'bundle'), precision: 'fp32' } as const;
  expect(softPerChunkOf(await exportBundle({ ...bundle, llm: run.llm }))).toBe(2);
  // Two chunks with two soft tokens each: the cosines of a validation are of more pairs than those of two chunks.
  const [first] = (await resultsOf(run)).log.map((line) => JSON.parse(line));
  expect(first.meanCosineOfEmbeddings).toBeLessThan(1);
  await expect(train(options('two', 4), silent(), never)).rejects.toMatchObject({
    code: 'config_invalid',
    message: expect.stringContaining('"softPerChunk":2'),
  });
});

test('one soft token that is asked for is that of a run that asks for nothing, bit for bit', {
  timeout: TRAINING_TIMEOUT_MS,
}, async () => {
  const [asked, plain] = [options('asked', 1), options('plain', undefined)];
  for (const run of [asked, plain]) await train(run, silent(), never);
  expect(await resultsOf(asked)).toEqual(await resultsOf(plain));
  const config = await readFile(join(plain.to, 'projector/config.json'), 'utf8');
  expect(config).not.toContain('soft_per_chunk');
  expect(await readFile(join(asked.to, 'projector/config.json'), 'utf8')).toBe(config);
});

test.each([
  ['reconstruct', {}],
  ['memory', { memory: { steps: 2, learningRate: 0.05 } }],
] as const)(
  'pretraining by %s sees all soft tokens of a chunk',
  { timeout: TRAINING_TIMEOUT_MS },
  async (scheme, more) => {
    const pretrain = { scheme, steps: 3, learningRate: 1e-2, tokens: 8, ...more };
    const run = options(`pretrained-${scheme}`, 4, { pretrain, pretrainOnly: true, validation: undefined });
    await train(run, silent(), never);
    const figures = (await resultsOf({ to: join(run.to, 'pretrain') })).log.map((line) => JSON.parse(line));
    expect(figures).toHaveLength(3);
    if (scheme === 'reconstruct') expect(figures.every(({ ce, loss }) => ce > 0 && ce === loss)).toBe(true);
    // A step of the regression sees two soft tokens, each beside the memory token of its own place.
    else expect(figures.map(({ tokens }) => tokens)).toEqual([2, 2, 2]);
  },
);
