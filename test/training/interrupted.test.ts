/** Ctrl-C and SIGTERM during the commands of training: real processes, which keep what they have done. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { expect, test, vi } from 'vitest';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { madeRepository, writeFiles } from '../support/made-repositories.ts';
import { GOLDENS } from '../support/models.ts';
import { CE_ALONE, smallRuns, TRAINING_TIMEOUT_MS } from '../support/training.ts';

vi.setConfig({ testTimeout: TRAINING_TIMEOUT_MS });
const CLI = join(PACKAGE_ROOT, 'dist/services/cli.js');
const { dir, validation, options } = await smallRuns(4);
const { data } = options('');

/** A command that has more to do than the test waits for. */
const words = (command: string, to: string, ...more: readonly string[]) => [
  ...[command, ...more, '--llm', join(GOLDENS, 'qwen2-tied'), '--data', data, '--to', to, '--threads', '1'],
  ...['--batch', '2', '--chunks', '2', '--layers', '2', '--prompt-tokens', '48', '--target-tokens', '8'],
  ...['--steps', '100000', '--every', '1000', '--encoder-max-tokens', '32'],
];

/** Runs a command, stops it when `isSeen`, and waits for its end. @returns its exit code and what it said on stderr */
async function stopped(given: readonly string[], signal: NodeJS.Signals, isSeen: () => Promise<boolean>) {
  const child = spawn(process.execPath, [CLI, ...given], { stdio: ['ignore', 'ignore', 'pipe'] });
  try {
    const [said, ended] = [text(child.stderr), once(child, 'exit')];
    await vi.waitUntil(async () => child.exitCode !== null || (await isSeen()), { timeout: TRAINING_TIMEOUT_MS });
    child.kill(signal);
    const [code] = await ended;
    return { code: code as number, said: await said };
  } finally {
    child.kill('SIGKILL');
  }
}

/** The lines of a log that are of steps, not of looks at the projector. */
const stepLines = async (path: string) => {
  const all = await readFile(path, 'utf8').catch(() => '');
  return all.split('\n').filter((line) => line.includes('"loss"'));
};
const lastStep = async (run: string) => (await readdir(join(run, 'checkpoints'))).at(-1)!;

test('a run that is stopped has a checkpoint of its last step, and the same command goes on from it', async () => {
  const run = join(dir, 'run');
  const log = join(run, 'log.jsonl');
  const given = words('train', run, '--ce', String(CE_ALONE.ce), '--alignment', '0');
  const first = await stopped(given, 'SIGINT', async () => (await stepLines(log)).length >= 3);
  expect(first.code).toBe(130);
  const [, step] = /stopped after step (\d+) of 100000, which has a checkpoint/.exec(first.said)!;
  expect(await lastStep(run)).toBe(`step-${step!.padStart(6, '0')}`);
  expect(first.said).toContain(`stopped by SIGINT: the same command goes on with what is kept in --to ${run}`);
  const made = (await stepLines(log)).length;
  expect(made).toBe(Number(step));

  const second = await stopped(given, 'SIGTERM', async () => (await stepLines(log)).length > made);
  expect(second.code).toBe(143);
  const steps = (await stepLines(log)).map((line) => JSON.parse(line).step as number);
  expect(steps).toEqual(steps.map((_, i) => i + 1)); // none was made twice, and none is missing
  expect(await lastStep(run)).toBe(`step-${String(steps.length).padStart(6, '0')}`);
});

test.each([
  ['sweep', [], 'trials/000'],
  ['ablate', ['table1'], 'rows/llava/run'],
] as const)('a run of %s that is stopped has a checkpoint, too', async (command, more, place) => {
  const to = join(dir, command);
  const run = join(to, place);
  const given = [...words(command, to, ...more), '--validation', validation, '--rollout-tokens', '4'];
  const isSeen = async () => (await stepLines(join(run, 'log.jsonl'))).length >= 3;
  const { code, said } = await stopped(given, 'SIGINT', isSeen);
  expect(code).toBe(130);
  const [, step] = /stopped after step (\d+) of 100000, which has a checkpoint/.exec(said)!;
  expect(await lastStep(run)).toBe(`step-${step!.padStart(6, '0')}`);
  expect(said).toContain(`the same command goes on with what is kept in --to ${to}`);
});

test('a data set that is stopped says how to go on', async () => {
  const [sources, to] = [join(dir, 'repositories'), join(dir, 'set')];
  for (let i = 0; i < 150; i++) await writeFiles(sources, madeRepository(`made${i}`));
  const given = ['dataset', sources, '--to', to, '--min-files', '1', '--per-repository', '5', '--shard-samples', '20'];
  const isSeen = async () => (await readdir(to).catch(() => [])).some((name) => name.endsWith('.gz'));
  const { code, said } = await stopped(given, 'SIGTERM', isSeen);
  expect([code, said]).toEqual([143, expect.stringContaining(`stopped by SIGTERM: the same command goes on`)]);
  expect(await readdir(to)).not.toContain('dataset.json');
  const work = await readdir(join(to, 'work'));
  expect(work.filter((name) => name.startsWith('waiting-'))).toHaveLength(1);
});
