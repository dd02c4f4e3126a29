/** A run with a stage before its steps: it can be killed in each of its parts, and is then the same. */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { Pretraining } from '../../../training/pretrain/settings.ts';
import type { TrainOptions } from '../../../training/run/settings.ts';
import { killed, resultsOf, smallRuns, TRAINING_TIMEOUT_MS, trained } from '../../support/training.ts';

const small = await smallRuns(4);
const SCHEMES: Readonly<Record<Pretraining['scheme'], Pretraining>> = {
  reconstruct: { scheme: 'reconstruct', steps: 4, learningRate: 1e-2, tokens: 8 },
  memory: { scheme: 'memory', steps: 4, learningRate: 1e-2, tokens: 8, memory: { steps: 3, learningRate: 0.05 } },
};
/** How far the parts of a scheme come before the process is killed, the last time within the run's own steps. */
const KILLS = {
  reconstruct: ['pretraining: step 3 of 4', 'step 2 of 3'],
  memory: ['fitting memory token 4', 'pretraining: step 2 of 4', 'step 2 of 3'],
};
const options = (name: string, scheme: Pretraining['scheme'], changes: Partial<TrainOptions> = {}) =>
  small.options(name, { pretrain: SCHEMES[scheme], ...changes });
const projectorOf = (folder: string) => readFile(join(folder, 'projector/model.safetensors'));
const stage = (run: TrainOptions) => ({ to: join(run.to, 'pretrain') });

describe.each(['reconstruct', 'memory'] as const)('pretraining by %s', { timeout: TRAINING_TIMEOUT_MS }, (scheme) => {
  test('the run begins with the projector of the stage, which is another one than without it', async () => {
    // The first step of a warm-up changes nothing, so the run's projector is that which it began with.
    const still = { steps: 1, warmup: 1 };
    const run = options(`first-${scheme}`, scheme, still);
    expect((await trained(run)).report).toMatchObject({ steps: 1, projector: join(run.to, 'projector') });
    expect(await projectorOf(run.to)).toEqual(await projectorOf(stage(run).to));
    const plain = options(`plain-${scheme}`, scheme, { ...still, pretrain: undefined });
    await trained(plain);
    expect(await projectorOf(run.to)).not.toEqual(await projectorOf(plain.to));
    const figures = (await resultsOf(stage(run))).log.map((line) => JSON.parse(line));
    expect(figures.map(({ step }) => step)).toEqual([1, 2, 3, 4]);
    if (scheme === 'reconstruct') expect(figures.every(({ ce, loss }) => ce > 0 && ce === loss)).toBe(true);
    else {
      for (const { loss, mse, cosineDistance } of figures) expect(loss).toBeCloseTo(mse + cosineDistance, 6);
      expect(figures.at(-1).loss).toBeLessThan(figures[0].loss);
    }
  });

  test('one that was killed in each of its parts ends with the same bits', async () => {
    const whole = options(`whole-${scheme}`, scheme);
    await trained(whole);
    const parted = options(`parted-${scheme}`, scheme);
    for (const words of KILLS[scheme]) await killed(parted, words);
    const { said } = await trained(parted);
    expect(await resultsOf(parted)).toEqual(await resultsOf(whole));
    expect(await resultsOf(stage(parted))).toEqual(await resultsOf(stage(whole)));
    expect(said.filter((text) => text.startsWith('pretraining'))).toEqual([]); // it was done
  });

  test('the stage alone is a run, and the same command without the limit goes on', async () => {
    const alone = options(`alone-${scheme}`, scheme, { pretrainOnly: true });
    const { report } = await trained(alone);
    expect(report).toMatchObject({ steps: 4, projector: join(alone.to, 'pretrain/projector') });
    expect(await readdir(alone.to)).not.toContain('checkpoints');
    expect((await trained(alone)).report).toEqual(report);
    await trained({ ...alone, pretrainOnly: false });
    expect(await resultsOf(alone)).toEqual(await resultsOf(options(`whole-${scheme}`, scheme)));
  });
});

test('a run does not go on with another stage, nor the stage with other settings', {
  timeout: TRAINING_TIMEOUT_MS,
}, async () => {
  const run = options('settled', 'reconstruct', { pretrainOnly: true });
  await trained(run);
  const refused = (what: string) => ({ code: 'config_invalid', message: expect.stringContaining(what) });
  const shorter = { ...run, pretrain: { ...SCHEMES.reconstruct, steps: 3 } };
  await expect(trained(shorter)).rejects.toMatchObject(refused('"steps":4'));
  const further = { ...run, steps: 1, pretrainOnly: false };
  await trained(further);
  await expect(trained({ ...further, pretrain: undefined })).rejects.toMatchObject(refused('"pretrain"'));
});
