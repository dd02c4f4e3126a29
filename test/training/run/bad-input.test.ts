/** What is wrong with the input of a run is refused with its place, before it has cost a step. */
import { cp, mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import { changedModel } from '../../support/tensors.ts';
import { resultsOf, smallRow, smallRuns, TRAINING_TIMEOUT_MS, trained, writeRows } from '../../support/training.ts';

vi.setConfig({ testTimeout: TRAINING_TIMEOUT_MS });
const { dir, validation, options } = await smallRuns(3);

/** A copy of the model in which one tensor has a number that is not finite. */
async function damaged(name: string, tensor: RegExp): Promise<string> {
  let isDone = false;
  return changedModel(options('').llm, join(dir, name), (key, values) => {
    if (!isDone && tensor.test(key)) values[3] = Number.NaN;
    isDone ||= tensor.test(key);
  });
}

test('weights that are not finite are named with their file, of the language model and of the encoder', async () => {
  const llm = await damaged('broken', /layers\.1\.mlp\.down_proj/);
  const refused = {
    code: 'checkpoint_invalid',
    message: expect.stringMatching(/broken.*layers\.1\.mlp\.down_proj\.weight holds NaN at index 3/),
    remedy: 'Download this checkpoint again.',
  };
  await expect(trained(options('of-llm', { llm }))).rejects.toMatchObject(refused);
  await expect(trained(options('of-encoder', { encoder: llm }))).rejects.toMatchObject(refused);
});

test('an embedding that is not finite is refused with its chunk, and none is kept', async () => {
  // Each weight is finite; their products are not.
  const encoder = await changedModel(options('').llm, join(dir, 'overflows'), (key, values) => {
    if (/norm/.test(key)) values.fill(3e38);
  });
  const embeddings = join(dir, 'kept');
  await expect(trained(options('overflow', { encoder, embeddings }))).rejects.toMatchObject({
    code: 'checkpoint_invalid',
    message: expect.stringMatching(/embedding of a chunk of [bc]\.py \("[bc]\d? = \d"\) is (NaN|-?Infinity)/),
    remedy: expect.stringMatching(/^Download the encoder again, name another one/),
  });
});

test('a bundle in place of a model or of an encoder is refused as one', async () => {
  const bundle = join(dir, 'bundle');
  await mkdir(bundle);
  await writeFile(join(bundle, 'manifest.json'), '{}');
  for (const flag of ['llm', 'encoder'] as const) {
    await expect(trained(options(`bundle-${flag}`, { [flag]: bundle }))).rejects.toMatchObject({
      code: 'config_invalid',
      message: expect.stringContaining(`--${flag} ${bundle} is a bundle`),
    });
  }
});

test('losses that all have the weight 0, and workers without a thread of their own, are refused', async () => {
  const weights = { ce: 0, reinforce: 0, kl: 0, alignment: 0 };
  await expect(trained(options('nothing', { weights }))).rejects.toMatchObject({
    code: 'config_invalid',
    message: expect.stringMatching(/^all losses have the weight 0.*: give --ce,/),
  });
  await expect(trained(options('crowded', { workers: 3, threads: 2 }))).rejects.toMatchObject({
    code: 'config_invalid',
    message: expect.stringMatching(/^--workers 3 have 2 threads.*: use at most --workers 2, or more --threads$/),
  });
});

test('a GPU that cannot be used is refused with the option that this command has', async () => {
  await expect(trained(options('no-gpu', { provider: 'cuda' }))).rejects.toMatchObject({
    code: 'provider_unavailable',
    message: expect.stringMatching(/or use --provider cpu$/),
  });
});

test('samples for which the model has too few positions are refused with what it has', async () => {
  await expect(trained(options('long', { promptTokens: 100_000 }))).rejects.toMatchObject({
    code: 'config_invalid',
    message: expect.stringMatching(/--prompt-tokens 100000: .* has \d+: use at most \d+$/),
  });
});

test('a prompt without room for its frame is named by file and line', async () => {
  await expect(trained(options('narrow', { promptTokens: 3 }))).rejects.toMatchObject({
    code: 'sample_invalid',
    message: expect.stringMatching(/train\.jsonl:\d: .*--prompt-tokens/),
  });
});

test('a sample with fewer chunks than others has fewer soft tokens, and is trained with them', async () => {
  const rows = [smallRow(0), { ...smallRow(1), crossfile_array: smallRow(1).crossfile_array.slice(0, 1) }];
  const few = await writeRows(join(dir, 'few.jsonl'), rows);
  const run = options('few', { data: few, steps: 1, batch: 2 });
  await trained(run);
  const line = (await resultsOf(run)).log.map((one) => JSON.parse(one)).find(({ step }) => step === 1);
  expect(line).toMatchObject({ loss: expect.any(Number) });
});

test('a checkpoint of another run is refused by name, and the run goes on without it', async () => {
  const mine = options('mine', { steps: 2 });
  await trained(mine);
  const expected = await resultsOf(mine);
  const other = options('other', { steps: 3, seed: 8 });
  await trained(other);
  const foreign = join(mine.to, 'checkpoints/step-000003');
  await cp(join(other.to, 'checkpoints/step-000003'), foreign, { recursive: true });
  await expect(trained(mine)).rejects.toMatchObject({
    code: 'checkpoint_invalid',
    message: expect.stringContaining(`${foreign} is a checkpoint of another run`),
    remedy: 'Put it back where it was, or remove it.',
  });
  await rm(foreign, { recursive: true });
  await trained(mine);
  expect(await resultsOf(mine)).toEqual(expected);
});

test('chunks that no step needs yet are not encoded before the first step', async () => {
  const rows = Array.from({ length: 200 }, (_, i) => smallRow(i));
  const many = await writeRows(join(dir, 'many.jsonl'), rows);
  const { said } = await trained(options('many', { data: many, validation, steps: 2, batch: 2 }));
  const encoded = said.findLast((text) => text.startsWith('encoding chunks'));
  // Two steps of two samples; 200 samples have 400 chunks.
  expect(encoded).toMatch(/^encoding chunks: \d, of 4 of 4 samples$/);
});
