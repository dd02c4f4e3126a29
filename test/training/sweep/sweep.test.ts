/** A sweep: trials of equal budget, the better ones of which go on; it can be killed at any moment. */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { isBetter } from '../../../training/run/best.ts';
import { withSettings } from '../../../training/sweep/space.ts';
import { type SweepOptions, type SweepResults, sweep } from '../../../training/sweep/sweep.ts';
import { tableOf } from '../../../training/sweep/table.ts';
import { killed, never, resultsOf, silent, smallRuns, TRAINING_TIMEOUT_MS, trained } from '../../support/training.ts';

const { dir, validation, ...small } = await smallRuns(4);
const options = (name: string, changes: Partial<SweepOptions> = {}): SweepOptions => ({
  ...small.options(name),
  validation,
  steps: 4,
  ranges: [
    { name: 'learning-rate', low: 1e-4, high: 1e-1, log: true },
    { name: 'alignment', low: 0, high: 1, log: false },
  ],
  trials: 4,
  factor: 2,
  ...changes,
});
const whole = options('whole');
const keptOf = (run: SweepOptions) => readFile(join(run.to, 'results.jsonl'), 'utf8');

describe('a sweep', { timeout: TRAINING_TIMEOUT_MS }, () => {
  let results: SweepResults;

  test('every trial of a round makes the same steps, and the better half of it goes on', async () => {
    results = await sweep(whole, silent(), never);
    expect(results.rounds.map(({ trials, steps }) => [trials, steps])).toEqual([
      [4, 1],
      [2, 2],
      [1, 4],
    ]);
    expect(results.trials.map(({ rounds, steps }) => [rounds, steps])).toEqual([
      [3, 4],
      [2, 2],
      [1, 1],
      [1, 1],
    ]);
    const lines = (await keptOf(whole))
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(lines).toHaveLength(4 + 2 + 1);
    const first = new Map(lines.slice(0, 4).map(({ key, value }) => [key, value.validation]));
    const inFirst = ({ number }: { readonly number: number }) => first.get(`round 1 trial ${number}`);
    for (const better of results.trials.slice(0, 2)) {
      for (const worse of results.trials.slice(2)) expect(isBetter(inFirst(worse), inFirst(better))).toBe(false);
    }
    const trials = join(whole.to, 'trials');
    const checkpoints = await Promise.all(
      results.trials.map(async ({ number }) => (await readdir(join(trials, `00${number}`))).includes('checkpoints')),
    );
    expect(checkpoints).toEqual([true, false, false, false]);
  });

  test('the best trial is the run that its settings give without interruption', async () => {
    const [best] = results.trials;
    const { ranges: _r, trials: _t, factor: _f, ...rest } = withSettings(whole, best!.settings);
    const run = { ...rest, to: join(dir, 'best') };
    await trained(run);
    expect(await resultsOf({ to: join(whole.to, 'trials', `00${best!.number}`) })).toEqual(await resultsOf(run));
  });

  test('one that was killed in two of its rounds ends with the same results', async () => {
    const parted = options('parted');
    await killed(parted, 'round 1 of 3, trial 3 (3 of 4): step 1 of 4');
    await killed(parted, 'round 3 of 3');
    expect(await sweep(parted, silent(), never)).toEqual(results);
    expect(await keptOf(parted)).toBe(await keptOf(whole));
    // When it is done, nothing is computed again.
    const said: string[] = [];
    expect(
      await sweep(
        parted,
        silent((text) => said.push(text)),
        never,
      ),
    ).toEqual(results);
    expect(said).toEqual([]);
  });

  test('its table has every trial, the budget, and the best settings as a command line', () => {
    const text = tableOf(results, whole, ['--llm', 'a model', '--steps', '4']);
    const [best] = results.trials;
    const rows = text.split('\n').filter((line) => line.startsWith('|'));
    expect(rows).toHaveLength(2 + 4);
    expect(new Set(rows.map((line) => line.length)).size).toBe(1);
    expect(text).toContain('4 to step 1, 2 to step 2, 1 to step 4');
    expect(text).toMatch(/made 8 steps; 4 whole runs would take 16/);
    expect(text).toContain("Optuna's TPE");
    const { 'learning-rate': rate, alignment } = best!.settings;
    expect(text).toContain(
      `llavacode train --llm 'a model' --steps 4 --learning-rate ${rate} --alignment ${alignment}\n`,
    );
  });

  test('a trial that diverges is out; where all do, the range is named', async () => {
    const log = true;
    const ranges = [{ name: 'learning-rate', low: 1e-3, high: 1e38, log }] as const;
    const { trials } = await sweep(options('some', { ranges, trials: 4, factor: 4, steps: 2 }), silent(), never);
    const fates = trials.map(({ validation }) => validation === undefined);
    expect(fates[0]).toBe(false);
    expect(fates).toContain(true);
    expect(tableOf({ rounds: [{ trials: 4, steps: 2 }], trials }, { ranges, seed: 7 }, [])).toContain('diverged');
    const hopeless = [{ name: 'learning-rate', low: 1e37, high: 1e38, log }] as const;
    await expect(sweep(options('all', { ranges: hopeless, trials: 2 }), silent(), never)).rejects.toMatchObject({
      code: 'training_diverged',
      message: expect.stringMatching(/all 2 trials diverged.*lower the range/),
    });
  });

  test('a folder of another sweep is refused, and too few steps', async () => {
    const refused = (what: string) => ({ code: 'config_invalid', message: expect.stringContaining(what) });
    await expect(sweep({ ...whole, trials: 5 }, silent(), never)).rejects.toMatchObject(refused('"trials":4'));
    const few = options('few', { steps: 2 });
    await expect(sweep(few, silent(), never)).rejects.toMatchObject(refused('--steps 2'));
  });
});
