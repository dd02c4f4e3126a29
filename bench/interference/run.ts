/** `bench interference`: running streams while long prompts arrive, in both modes. */

import { run } from '../harness/run.ts';
import { type BenchOptions, prepareModel, systemSettings, withSystems } from '../harness/systems.ts';
import type { Artifact } from '../report/artifact.ts';
import { BOTH } from '../system/system.ts';
import {
  type InterferenceOptions,
  type InterferenceResult,
  type InterferenceRun,
  idleTtft,
  measureInterference,
} from './measure.ts';

/** Of the windows, where nothing else is said: this long, or time for so many prompts. */
const WINDOW = { leastMs: 20_000, prompts: 8 };

/**
 * @param interference without a windowMs: as long as it takes.
 * @param everyMs between two prompts; undefined: one and a half times what the slower deployment takes for one.
 */
export async function runInterference(
  options: BenchOptions,
  modelName: string,
  interference: Omit<InterferenceOptions, 'windowMs'> & Partial<Pick<InterferenceOptions, 'windowMs'>>,
  everyMs?: number,
): Promise<Artifact<InterferenceResult>> {
  const prepared = await prepareModel(modelName, options);
  const { model, prompts } = prepared;
  const settings = { ...systemSettings(options), ...interference, pinning: 'split' };
  return run(options, { bench: 'interference', models: [model], settings }, (onProgress) =>
    withSystems(options, prepared, { deployments: BOTH, pinning: 'split' }, async (systems) => {
      onProgress('prompts on idle systems');
      const idle: number[] = [];
      for (const { url } of systems) idle.push(await idleTtft(url, prompts, interference));
      const every = everyMs ?? 1.5 * Math.max(...idle);
      const windowMs = interference.windowMs ?? Math.max(WINDOW.leastMs, WINDOW.prompts * every);
      const how = { ...interference, windowMs };
      const runs: InterferenceRun[] = [];
      for (const { name, url } of systems) {
        onProgress(name);
        runs.push(await measureInterference(url, name, prompts, how, every));
      }
      return { model: model.name, options: how, everyMs: every, runs };
    }),
  );
}
