/** Runs `bench start`: all versions in turns, first on empty data folders, then on what those starts have left. */
import { stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { execa } from 'execa';
import { ServingError } from '../../services/lib/process/errors.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { run } from '../harness/run.ts';
import type { Artifact } from '../report/artifact.ts';
import type { StartOptions } from './command.ts';
import {
  type Checkout,
  type IdleProcess,
  measureIdle,
  measureStart,
  type StartResult,
  type StartRun,
} from './measure.ts';
import { START } from './report.ts';

export async function runStart(options: StartOptions): Promise<Artifact<StartResult>> {
  if (process.platform !== 'linux') {
    throw new ServingError('config_invalid', `bench start reads /proc, which ${process.platform} has not: use Linux`);
  }
  const { runs, idleSeconds, against, data } = options;
  const roots = [PACKAGE_ROOT, ...(against === undefined ? [] : [resolve(against)])];
  for (const root of roots) await assertBuilt(root);
  return run(START, options, { models: [], settings: { ...options } }, async (onProgress) => {
    const versions = await Promise.all(roots.map((root, i) => checkoutOf(root, resolve(data, `start-${i}`))));
    for (const kind of ['new', 'kept'] as const) {
      for (let i = 0; i < runs; i++) {
        onProgress(`start ${i + 1} of ${runs}, data folder ${kind}`);
        for (const each of versions) each.starts.push(await measureStart(each, kind));
      }
    }
    if (idleSeconds > 0) {
      onProgress('without requests');
      await Promise.all(
        versions.map(async (each) => {
          each.idle = await measureIdle(each, idleSeconds);
        }),
      );
    }
    return { idleSeconds, versions: versions.map(({ version, starts, idle }) => ({ version, starts, idle })) };
  });
}

interface Measured extends Checkout {
  readonly version: string;
  readonly starts: StartRun[];
  idle: readonly IdleProcess[];
}

async function checkoutOf(root: string, data: string): Promise<Measured> {
  const { stdout, exitCode } = await execa('git', ['rev-parse', '--short=12', 'HEAD'], { cwd: root, reject: false });
  return { root, data, version: exitCode === 0 ? String(stdout) : 'unknown', starts: [], idle: [] };
}

/** @throws ServingError config_invalid: a start that builds first would be measured with the build. */
async function assertBuilt(root: string): Promise<void> {
  const stamp = join(root, 'dist', '.built');
  if (await stat(stamp).catch(() => undefined)) return;
  throw new ServingError(
    'config_invalid',
    `${root} has not been built by npm start: ${stamp} does not exist; run npm start there once`,
  );
}
