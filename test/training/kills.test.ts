/** A run that gets SIGKILL at moments of all kinds, and goes on each time, ends with the bits of one that did not. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { wordsAt } from '../../services/lib/numeric/random.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import type { TrainOptions } from '../../training/run/settings.ts';
import { resultsOf, smallRuns, TRAINING_TIMEOUT_MS, trained } from '../support/training.ts';
import type { Moment } from './killed-at.fixture.ts';

const FIXTURE = join(PACKAGE_ROOT, 'dist/test/training/killed-at.fixture.js');
const { validation, ...small } = await smallRuns(6);
const options = (name: string) =>
  small.options(name, { validation, steps: 6, weights: { ce: 0.9, reinforce: 0.1, kl: 0, alignment: 0.1 } });

/** Trains in another process until the moment. @returns whether it came to it; else the run was done before */
async function isKilled(run: TrainOptions, moment: Moment): Promise<boolean> {
  const child = spawn(process.execPath, [FIXTURE, JSON.stringify(run), JSON.stringify(moment)], { stdio: 'inherit' });
  const [code, signal] = await once(child, 'exit');
  if (signal !== 'SIGKILL' && code !== 0) throw new Error(`the run ended with ${code ?? signal}`);
  return signal === 'SIGKILL';
}

/** Within the save of a checkpoint: while its files are written, before it is there whole, and when it just is. */
const SAVES: readonly Moment[] = [
  { at: '/checkpoints/.step-', when: 'before' },
  { at: 'projector.safetensors.', when: 'during' },
  { at: 'optimizer.safetensors.', when: 'during' },
  { at: '/state.json', when: 'during' },
  { at: '/state.json', when: 'after' },
  { at: '/projector-last/', when: 'before' },
];
const WHEN = ['before', 'during', 'after'] as const;
const SEED = 21;
/** More operations than a run has before its first checkpoint. */
const OPERATIONS = 120;

test('a run that is killed at moments of all kinds ends with the same bits', {
  timeout: TRAINING_TIMEOUT_MS,
}, async () => {
  const whole = options('whole');
  await trained(whole);
  const parted = options('parted');
  for (const moment of SAVES) expect(await isKilled(parted, moment), JSON.stringify(moment)).toBe(true);
  expect((await readdir(join(parted.to, 'checkpoints'))).length).toBeGreaterThan(0);
  let kills = 0;
  for (let i = 0; i < 6; i++) {
    const [operation, when] = wordsAt(SEED, i);
    if (await isKilled(parted, { at: operation % OPERATIONS, when: WHEN[when % WHEN.length]! })) kills++;
  }
  expect(kills).toBeGreaterThanOrEqual(3); // the others would come after the end of the run
  await trained(parted);
  expect(await resultsOf(parted)).toEqual(await resultsOf(whole));
  for (const folder of ['.', 'checkpoints', 'projector', 'projector-last']) {
    const [left, wanted] = [await readdir(join(parted.to, folder)), await readdir(join(whole.to, folder))];
    expect(left.sort(), folder).toEqual(wanted.sort());
  }
});
