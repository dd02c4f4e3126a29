/** A run from a data set to a projector that is exported; it can be interrupted at any step, and is then the same. */
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { exportBundle } from '../../../services/lib/model/bundle/export-bundle.ts';
import type { TrainOptions } from '../../../training/run/settings.ts';
import { train } from '../../../training/run/train.ts';
import { TINY_CODER, temporaryFolder } from '../../support/models.ts';
import {
  CE_ALONE,
  killed,
  never,
  resultsOf as results,
  row,
  silent,
  stopAt,
  TRAINING_TIMEOUT_MS,
  tinyOptions,
  writeRows,
} from '../../support/training.ts';

const dir = await temporaryFolder();
const TIMEOUT_MS = TRAINING_TIMEOUT_MS;
const dataSet = (name: string, rows: readonly unknown[]) => writeRows(join(dir, name), rows);
const data = await dataSet('train.jsonl', [0, 1, 2, 3, 4].map(row));
const validation = await dataSet('valid.jsonl', [row(9)]);

const weights = CE_ALONE;

const options = (name: string, changes: Partial<TrainOptions> = {}): TrainOptions => ({
  ...tinyOptions({ data, validation, to: join(dir, name) }),
  ...changes,
});

describe('a run', () => {
  test('a run that was interrupted goes on to the same projector and figures, bit for bit', {
    timeout: TIMEOUT_MS,
  }, async () => {
    const whole = options('whole');
    const report = await train(whole, silent(), never);
    const expected = await results(whole);
    expect(report).toMatchObject({ steps: 4, projector: join(whole.to, 'projector') });
    // Steps 1 to 4, and validations before the first and after the second and the fourth.
    expect(expected.log.map((line) => JSON.parse(line).step)).toEqual([0, 1, 2, 2, 3, 4, 4]);

    const parted = options('parted');
    await killed(parted, 'step 1 of 4'); // before the first checkpoint: the log has a validation and a step
    // Step 2 has a validation, which is still to be made when the run is stopped after the step.
    for (const step of [1, 2, 3]) {
      const words = `step ${step} of 4`;
      const { progress, signal } = stopAt(words);
      const warned: string[] = [];
      const warning = { ...progress, warn: (text: string) => void warned.push(text) };
      await expect(train(parted, warning, signal)).rejects.toThrow(`stopped at ${words}`);
      expect(warned).toEqual([`stopped after step ${step} of 4, which has a checkpoint`]);
      expect((await readdir(join(parted.to, 'checkpoints'))).at(-1)).toBe(`step-00000${step}`);
    }
    expect((await results(parted)).log).toHaveLength(5);
    await train(parted, silent(), never);
    expect(await results(parted)).toEqual(expected);
    const page = await readFile(join(parted.to, 'report.html'), 'utf8');
    expect(page).toContain('step 4 of 4');
    expect(page).toContain('Pairwise cosines of 2 chunks');
    // A run that is complete says its figures again, and its log stays.
    expect((await train(parted, silent(), never)).validation).toEqual(report.validation);
    expect(await results(parted)).toEqual(expected);
    expect((await readdir(parted.to)).sort()).toEqual(
      ['checkpoints', 'embeddings', 'log.jsonl', 'projector', 'projector-last', 'report.html', 'run.json'].sort(),
    );
    // The last two, and the best one, whichever it is.
    expect((await readdir(join(parted.to, 'checkpoints'))).slice(-2)).toEqual(['step-000003', 'step-000004']);
    const last = await readFile(join(parted.to, 'checkpoints/step-000004/projector.safetensors'));
    expect(await readFile(join(parted.to, 'projector-last/model.safetensors'))).toEqual(last);
  });

  test('the projector is exported with the encoder that it was trained for', { timeout: TIMEOUT_MS }, async () => {
    const run = options('exported', {
      steps: 99,
      epochs: 0.2, // of 5 samples in batches of 2: one step
      layers: 4,
      every: 1,
      weights,
    });
    const { projector, steps } = await train(run, silent(), never);
    expect(steps).toBe(1);
    const manifest = await exportBundle({ llm: TINY_CODER, projector, to: join(dir, 'bundle'), precision: 'int8' });
    expect(manifest.context!.encoder).toMatchObject({ pooling: 'mean', maxTokens: 48, normalize: true });
    expect(manifest.context!.projector.widths).toEqual([256, 512, 512, 512, 256]);
  });

  test('steps lower the loss of a set that is seen again and again, with 8-bit frozen weights too', {
    timeout: TIMEOUT_MS,
  }, async () => {
    const run = options('learns', {
      steps: 8,
      batch: 5,
      every: 8,
      layers: 4,
      frozen: 'w8a8',
      validation: undefined,
      weights,
    });
    const said: string[] = [];
    await train(
      run,
      silent(undefined, (text) => said.push(text)),
      never,
    );
    expect(said).toEqual([expect.stringMatching(/cosine of 0\.99\d\d to that through 32-bit floats \(4 samples\)/)]);
    const losses = (await results(run)).log.flatMap((line): number[] => JSON.parse(line).loss ?? []);
    expect(losses).toHaveLength(8);
    expect(losses.at(-1)!).toBeLessThan(losses[0]! - 0.05);
  });

  test('a run does not go on with other settings or other data', { timeout: TIMEOUT_MS }, async () => {
    const run = options('settled', { steps: 1, every: 1, validation: undefined, weights });
    await train(run, silent(), never);
    const refused = (what: string) => ({ code: 'config_invalid', message: expect.stringContaining(what) });
    await expect(train({ ...run, seed: 8 }, silent(), never)).rejects.toMatchObject(refused('{"seed":8}'));
    const other = await dataSet('other.jsonl', [row(1)]);
    await expect(train({ ...run, data: other }, silent(), never)).rejects.toMatchObject(refused('"data"'));
  });

  test('a run begins with the projector of another one, and goes on with that one alone', {
    timeout: TIMEOUT_MS,
  }, async () => {
    const first = options('first-stage', { steps: 2, every: 2, learningRate: 0.01, weights });
    await train(first, silent(), never);
    const from = join(first.to, 'projector-last');
    const second = options('second-stage', { steps: 1, every: 1, weights: { ...weights, reinforce: 0.1 }, from });
    await train(second, silent(), never);
    const ceOf = ({ log }: { readonly log: readonly string[] }, at: number) => JSON.parse(log.at(at)!).validCe;
    const [before, after] = [await results(first), await results(second)];
    expect(ceOf(before, 0)).not.toBe(ceOf(before, -1));
    expect(ceOf(after, 0)).toBe(ceOf(before, -1));
    const refused = { code: 'config_invalid', message: expect.stringContaining('"from"') };
    await expect(train({ ...second, from: undefined }, silent(), never)).rejects.toMatchObject(refused);
    const deeper = options('deeper', { from, layers: 3 });
    await expect(train(deeper, silent(), never)).rejects.toMatchObject({
      code: 'config_invalid',
      message: expect.stringMatching(/--from .* the widths 256, 256, 256, and this run's has 256, 512, 512, 256/),
    });
  });

  test('the best projector of the validations is kept, and the run ends when none is better for long enough', {
    timeout: TIMEOUT_MS,
  }, async () => {
    // What is trained has nothing to do with this target, so its steps soon make the projector worse for it.
    const unlike = await dataSet('unlike.jsonl', [{ ...row(9), groundtruth: 'zebra = "9 + 8" # 77 %' }]);
    const run = options('early', { steps: 40, every: 1, patience: 3, learningRate: 0.01, validation: unlike, weights });
    const report = await train(run, silent(), never);
    expect(report).toMatchObject({ stoppedEarly: true, steps: report.bestStep + 3 });
    expect(report.steps).toBeLessThan(40);
    const { log, projector } = await results(run);
    const validations = log.map((line) => JSON.parse(line)).filter((line) => 'validEm' in line && line.step > 0);
    const found = validations.find(({ step }) => step === report.bestStep);
    expect(found).toMatchObject(report.validation!);
    for (const { validEm, validEs, validCe } of validations) {
      const keys = [validEm, validEs, -validCe];
      const best = [found.validEm, found.validEs, -found.validCe];
      const differs = keys.findIndex((key, i) => key !== best[i]);
      expect(differs < 0 || keys[differs] < best[differs]!).toBe(true);
    }
    const folder = `step-${String(report.bestStep).padStart(6, '0')}`;
    expect(await readdir(join(run.to, 'checkpoints'))).toContain(folder);
    expect(projector).toEqual(await readFile(join(run.to, 'checkpoints', folder, 'projector.safetensors')));
    expect(projector).not.toEqual(await readFile(join(run.to, 'projector-last/model.safetensors')));
    // The same command changes nothing; with more patience the run goes on.
    expect(await train(run, silent(), never)).toEqual(report);
    const patient = await train({ ...run, patience: 5 }, silent(), never);
    expect(patient.steps).toBeGreaterThan(report.steps);
  });

  test('a run that diverges names the sample and the checkpoint that is still good', {
    timeout: TIMEOUT_MS,
  }, async () => {
    const run = options('diverging', { steps: 6, every: 1, warmup: 0.3, learningRate: 1e38, weights });
    // The first step of a warm-up changes nothing, and is saved; the second one ruins the projector.
    await expect(train(run, silent(), never)).rejects.toMatchObject({
      code: 'training_diverged',
      message: expect.stringMatching(/valid\.jsonl:1.*; the checkpoint after step 1 is still good/),
    });
    expect(await readdir(join(run.to, 'checkpoints'))).toEqual(['step-000001']);
    const unseen = { ...run, to: join(dir, 'unseen'), validation: undefined };
    await expect(train(unseen, silent(), never)).rejects.toMatchObject({
      code: 'training_diverged',
      message: expect.stringContaining('the checkpoint after step '),
    });
  });

  test('only one process at a time works on a run', { timeout: TIMEOUT_MS }, async () => {
    const run = options('locked', { steps: 1, every: 1, validation: undefined, weights });
    let second: Promise<unknown> | undefined;
    await train(
      run,
      silent((text) => {
        if (text.startsWith('step 1')) second = train(run, silent(), never).catch((error: unknown) => error);
      }),
      never,
    );
    expect(await second).toMatchObject({
      code: 'path_unusable',
      message: expect.stringContaining(`process ${process.pid} works on this run`),
    });
    expect(await train(run, silent(), never)).toMatchObject({ steps: 1 });
  });

  test('rollouts that are drawn are rewarded for what they are better than the greedy ones, the same in each run', {
    timeout: TIMEOUT_MS,
  }, async () => {
    const weights = { ce: 0, reinforce: 1, kl: 0, alignment: 0 };
    const run = (name: string, changes: Partial<TrainOptions>) =>
      options(name, { steps: 2, validation: undefined, weights, baseline: 'scst', ...changes });
    const twice = [run('scst', {}), run('scst-again', {})];
    for (const one of twice) await train(one, silent(), never);
    expect(await results(twice[0]!)).toEqual(await results(twice[1]!));
    const other = run('scst-other', { seed: 8 });
    await train(other, silent(), never);
    expect((await results(other)).log).not.toEqual((await results(twice[0]!)).log);
  });

  test('a damaged checkpoint is named', { timeout: TIMEOUT_MS }, async () => {
    const GO_BACK = 'Remove its folder to go on from the checkpoint before it.';
    const run = options('damaged', { steps: 2, every: 1, validation: undefined, weights });
    await train(run, silent(), never);
    const newest = join(run.to, 'checkpoints/step-000002');
    const [embeddings] = await readdir(join(run.to, 'embeddings'));
    const [vectors] = await readdir(join(run.to, 'embeddings', embeddings!));
    for (const [file, remedy] of [
      [join(run.to, 'embeddings', embeddings!, vectors!), 'Remove this file: its chunks are encoded again.'],
      [join(newest, 'optimizer.safetensors'), GO_BACK],
      [join(newest, 'projector.safetensors'), GO_BACK],
      [join(newest, 'state.json'), GO_BACK],
    ] as const) {
      const whole = await readFile(file);
      await writeFile(file, whole.subarray(0, -10));
      const refused = { code: 'checkpoint_invalid', message: expect.stringContaining(file), remedy };
      await expect(train(run, silent(), never)).rejects.toMatchObject(refused);
      if (file !== join(newest, 'state.json')) await writeFile(file, whole);
    }
    const projector = join(run.to, 'projector/model.safetensors');
    await writeFile(projector, (await readFile(projector)).subarray(0, -10));
    await expect(train(options('from-damaged', { from: projector }), silent(), never)).rejects.toMatchObject({
      code: 'checkpoint_invalid',
      remedy: expect.stringMatching(/^If llavacode train wrote it, give its command again/),
    });
    await rm(newest, { recursive: true });
    await mkdir(join(run.to, 'checkpoints', '.step-000002.left'));
    expect(await train(run, silent(), never)).toMatchObject({ steps: 2 });
    expect(await readdir(join(run.to, 'checkpoints'))).toEqual(['step-000001', 'step-000002']);
  });

  test('a sample that cannot be used is named by file and line', { timeout: TIMEOUT_MS }, async () => {
    const cases: [rows: unknown[], what: string][] = [
      [[row(1), { ...row(2), groundtruth: '' }], ':2: groundtruth: has no text'],
      [[{ ...row(1), crossfile_array: [] }], ':1: crossfile_array: has no chunk'],
      [[{ ...row(1), prompt: 3 }], ':1: prompt'],
      [[7], ':1: the line'],
      [[], 'no samples'],
    ];
    for (const [i, [rows, what]] of cases.entries()) {
      const path = await dataSet(`bad-${i}.jsonl`, rows);
      await expect(train(options(`bad-${i}`, { data: path }), silent(), never)).rejects.toMatchObject({
        code: 'sample_invalid',
        message: expect.stringContaining(what),
      });
    }
    await expect(train(options('absent', { data: join(dir, 'none') }), silent(), never)).rejects.toMatchObject({
      code: 'path_unusable',
    });
  });
});
