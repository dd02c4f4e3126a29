/** Passes of several samples at a time, in processes of their own. They run what lies in `dist/`. */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, expect, onTestFinished, test, vi } from 'vitest';
import { train } from '../../../training/run/train.ts';
import { ModelPass } from '../../../training/step/pass.ts';
import { TrainableProjector } from '../../../training/step/projector.ts';
import { Trainer } from '../../../training/step/trainer.ts';
import { never, resultsOf, silent, smallRuns, TRAINING_TIMEOUT_MS, trained } from '../../support/training.ts';
import { openTrainingGoldens } from '../../support/training-goldens.ts';

vi.setConfig({ testTimeout: TRAINING_TIMEOUT_MS });
const { dir: folder, ...small } = await smallRuns(4);
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

const signalAll = async (signal: NodeJS.Signals) => {
  for (const id of await workerIds()) process.kill(id, signal);
};
const noneIsLeft = () => vi.waitUntil(async () => (await workerIds()).length === 0, { timeout: TRAINING_TIMEOUT_MS });
const placeOf = (workers: number, threads: number) => {
  const { spec, weights } = goldens;
  return { folder, threads, workers, spec, weights, layers: 'fp32', maxPositions: 512 } as const;
};

/** The gradients of a batch, as bytes. */
async function gradientsWith(workers: number, threads: number): Promise<Buffer[]> {
  const { widths, parameters } = await goldens.projector(2);
  const place = placeOf(workers, threads);
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
  await noneIsLeft();
});

test('a worker that dies in a pass fails that pass, and no other', async () => {
  const model = await ModelPass.load(placeOf(2, 2), WEIGHTS);
  try {
    const [sample] = goldens.samples;
    const soft = new Float32Array(sample!.softPositions.length * goldens.spec.hidden);
    const pass = () =>
      model.run(sample!, soft, 1, {}).then(
        ({ ce }) => ce,
        (error: unknown) => error,
      );
    const expected = await pass();
    const [dies, lives] = await workerIds();
    await signalAll('SIGSTOP'); // so that both passes have begun, and none can end
    const passes = [pass(), pass()];
    process.kill(dies!, 'SIGKILL');
    process.kill(lives!, 'SIGCONT');
    const found = await Promise.all(passes);
    expect(found).toContain(expected);
    const message = expect.stringContaining(`(process ${dies}) was ended by SIGKILL`);
    expect(found).toContainEqual(expect.objectContaining({ code: 'worker_lost', message }));
  } finally {
    model.dispose();
  }
  await noneIsLeft();
});

const fortySteps = (name: string) =>
  small.options(name, { weights: WEIGHTS, steps: 40, every: 1, workers: 2, threads: 2 });

test.each([
  ['dies', async () => process.kill((await workerIds())[0]!, 'SIGKILL'), 'was ended by SIGKILL'],
  [
    'is stopped',
    async () => {
      await signalAll('SIGSTOP');
      vi.advanceTimersByTime(13 * 5000);
    },
    'has not answered for 60 s: it was stopped, or hangs',
  ],
])(
  'a worker that %s ends the run by name, with the checkpoint from which the run goes on',
  async (name, wound, why) => {
    vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval'] });
    onTestFinished(() => void vi.useRealTimers());
    const run = fortySteps(name);
    let done: Promise<unknown> | undefined;
    const atTwo = silent((text) => {
      if (text.startsWith('step 2 ')) done ??= wound();
    });
    const message = expect.stringMatching(
      new RegExp(
        `training worker \\d of 2 \\(process \\d+\\) ${why}; the checkpoint after step \\d+ is still good: the`,
      ),
    );
    await expect(train(run, atTwo, never)).rejects.toMatchObject({ code: 'worker_lost', message });
    await done;
    await noneIsLeft();
    await trained(run);
    const whole = fortySteps('whole');
    await trained(whole);
    expect(await resultsOf(run)).toEqual(await resultsOf(whole));
  },
);
