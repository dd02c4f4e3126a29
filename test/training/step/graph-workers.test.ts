/** Passes of several samples at a time, in processes of their own. They run what lies in `dist/`. */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, expect, test, vi } from 'vitest';
import { train } from '../../../training/run/train.ts';
import { ModelPass } from '../../../training/step/pass.ts';
import { TrainableProjector } from '../../../training/step/projector.ts';
import { Trainer } from '../../../training/step/trainer.ts';
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
import { openTrainingGoldens } from '../../support/training-goldens.ts';

vi.setConfig({ testTimeout: TRAINING_TIMEOUT_MS });
const folder = await temporaryFolder();
const goldens = await openTrainingGoldens();
afterAll(() => goldens.close());
const WEIGHTS = { ce: 1, reinforce: 0, kl: 0, alignment: 0.1 };

/** Ids of the training workers of this process. */
async function workerIds(): Promise<number[]> {
  const found: number[] = [];
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const read = (file: string) => readFile(join('/proc', name, file), 'utf8').catch(() => '');
    const parent = (await read('stat')).replace(/^.*\) \S /s, '').split(' ')[0];
    if (parent === String(process.pid) && (await read('cmdline')).includes('graph-worker.js')) found.push(Number(name));
  }
  return found.sort((a, b) => a - b);
}

/** The gradients of a batch, as bytes. */
async function gradientsWith(workers: number, threads: number): Promise<Buffer[]> {
  const { spec, weights } = goldens;
  const { widths, parameters } = await goldens.projector(2);
  const place = { folder, threads, workers, spec, weights, layers: 'fp32', maxPositions: 512 } as const;
  const projector = await TrainableProjector.load({ widths }, parameters, 'frobenius', { folder, threads: 1 });
  const model = await ModelPass.load(place, WEIGHTS);
  try {
    expect(model.parallel).toBe(workers);
    const settings = { weights: WEIGHTS, clipNorm: 1, weightDecay: 0 };
    const { gradients } = await new Trainer(projector, model, {}, settings).gradients(goldens.samples);
    return [...gradients.values()].map((values) => Buffer.from(values.buffer));
  } finally {
    model.dispose();
    projector.dispose();
  }
}

test('any number of workers gives the same bits, and none is left behind', async () => {
  const alone = await gradientsWith(1, 1);
  expect(await gradientsWith(3, 3)).toEqual(alone);
  expect(await gradientsWith(2, 2)).toEqual(alone);
  await vi.waitUntil(async () => (await workerIds()).length === 0, { timeout: TRAINING_TIMEOUT_MS });
});

test('a worker that dies ends the run by name, with the checkpoint from which the run goes on', async () => {
  const data = await writeRows(join(folder, 'train.jsonl'), [0, 1, 2, 3].map(smallRow));
  const options = (name: string) => ({
    ...smallOptions({ data, validation: undefined, to: join(folder, name) }),
    weights: { ce: 1, reinforce: 0, kl: 0, alignment: 0.1 },
    steps: 40,
    every: 1,
    workers: 2,
    threads: 2,
  });
  const whole = options('whole');
  await train(whole, silent(), never);
  const wounded = options('wounded');
  let killed: Promise<void> | undefined;
  const kill = async () => {
    for (const id of (await workerIds()).slice(0, 1)) process.kill(id, 'SIGKILL');
  };
  const killAtTwo = silent((text) => {
    if (text.startsWith('step 2 ')) killed ??= kill();
  });
  await expect(train(wounded, killAtTwo, never)).rejects.toMatchObject({
    code: 'worker_lost',
    message: expect.stringMatching(
      /training worker \d of 2 \(process \d+\) was ended by SIGKILL; the checkpoint after step \d+ is still good: the/,
    ),
  });
  await killed;
  await vi.waitUntil(async () => (await workerIds()).length === 0, { timeout: TRAINING_TIMEOUT_MS });
  await train(wounded, silent(), never);
  expect(await resultsOf(wounded)).toEqual(await resultsOf(whole));
});
