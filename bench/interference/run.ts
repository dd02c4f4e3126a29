/** Runs `bench interference` on both deployments. */
import { run } from '../harness/run.ts';
import { prepareModel, withSystems } from '../harness/systems.ts';
import { onlyModel } from '../options.ts';
import type { Artifact } from '../report/artifact.ts';
import { BOTH } from '../system/deployment.ts';
import type { InterferenceOptions } from './command.ts';
import {
  type InterferenceResult,
  type InterferenceRun,
  idleTtft,
  measureInterference,
  STREAM_SHAPE,
} from './measure.ts';
import { INTERFERENCE } from './report.ts';

/** Each window lasts at least this long and has time for this many prompts, unless its length is given. */
const WINDOW = { leastMs: 20_000, prompts: 8 };
const PLAN = { deployments: BOTH, pinning: 'split' } as const;

export async function runInterference(options: InterferenceOptions): Promise<Artifact<InterferenceResult>> {
  const prepared = await prepareModel(onlyModel(options), options);
  const { model, prompts } = prepared;
  const { streams, promptTokens, capacity, timeoutMs, windowSeconds } = options;
  const plan = { models: [model], settings: { ...options, ...STREAM_SHAPE, pinning: PLAN.pinning } };
  return run(INTERFERENCE, options, plan, (onProgress) =>
    withSystems(options, prepared, PLAN, async (systems) => {
      onProgress('prompts on idle systems');
      const idle: number[] = [];
      for (const { url } of systems) idle.push(await idleTtft(url, prompts, options));
      const everyMs = options.everyMs ?? 1.5 * Math.max(...idle);
      const windowMs =
        windowSeconds === undefined ? Math.max(WINDOW.leastMs, WINDOW.prompts * everyMs) : 1000 * windowSeconds;
      const how = { streams, promptTokens, capacity, timeoutMs, windowMs };
      const runs: InterferenceRun[] = [];
      for (const { name, url } of systems) {
        onProgress(name);
        runs.push(await measureInterference(url, name, prompts, how, everyMs));
      }
      return { model: model.name, options: { ...how, ...STREAM_SHAPE }, everyMs, runs };
    }),
  );
}
