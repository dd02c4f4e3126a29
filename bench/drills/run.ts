/** Runs `bench drills` and `bench soak`. Both end with exit code 1 if the system broke its promise. */
import { basename } from 'node:path';
import { run } from '../harness/run.ts';
import { openModel } from '../system/model.ts';
import type { DrillsOptions, SoakOptions } from './command.ts';
import { runDrills } from './judge.ts';
import { DRILLS_BENCH, SOAK_BENCH } from './report.ts';
import { runSoak } from './soak.ts';

export async function runDrillsBench(options: DrillsOptions): Promise<void> {
  const model = await openModel(options.model, options);
  const settings = { ...options, store: options.redis === undefined ? 'lmdb' : 'redis' };
  const { result } = await run(DRILLS_BENCH, options, { models: [model], settings }, async (onProgress) => ({
    drills: await runDrills(model, { ...options, repo: basename(options.path), onProgress }),
  }));
  if (result.drills.some(({ broken }) => broken !== '')) process.exitCode = 1;
}

export async function runSoakBench(options: SoakOptions): Promise<void> {
  const model = await openModel(options.model, options);
  const { result } = await run(SOAK_BENCH, options, { models: [model], settings: options }, (onProgress) =>
    runSoak(model, { ...options, repo: basename(options.path), onProgress }),
  );
  if (result.broken !== '') process.exitCode = 1;
}
