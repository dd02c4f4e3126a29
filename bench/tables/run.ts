/** `llavacode bench tables` */

import { run } from '../harness/run.ts';
import {
  assertNoUrl,
  type BenchOptions,
  type PreparedModel,
  prepareModel,
  systemSettings,
  withSystems,
} from '../harness/systems.ts';
import type { Artifact } from '../report/artifact.ts';
import { BOTH } from '../system/system.ts';
import { measureTables, type Pair, type TablesResult } from './measure.ts';

export interface TablesOptions {
  readonly models: readonly string[];
  readonly rounds: number;
  /** For all models together; shared by their sizes, so that all have about as many rounds. */
  readonly budgetMinutes: number;
}

export async function runTables(options: BenchOptions, tables: TablesOptions): Promise<Artifact<TablesResult>> {
  assertNoUrl(options, 'tables', 'both modes');
  const prepared: PreparedModel[] = [];
  for (const name of tables.models) prepared.push(await prepareModel(name, options));
  // Both workers may use every core, as the paper's share one GPU; a slot is enough for one request at a time.
  const plan = { deployments: BOTH, pinning: 'shared' as const, slots: 2 };
  const settings = { ...systemSettings(options), ...tables, pinning: plan.pinning, slots: plan.slots };
  return run(options, { bench: 'tables', models: prepared.map(({ model }) => model), settings }, async (onProgress) => {
    const pairs: Pair[] = [];
    const total = prepared.reduce((sum, ready) => sum + work(ready), 0);
    for (const ready of prepared) {
      const ofModel = await withSystems(options, ready, plan, (systems) =>
        measureTables({
          model: ready.model.name,
          systems: systems.map(({ url, deployment }) => ({ url, mode: deployment!.mode })),
          prompts: ready.prompts,
          rounds: tables.rounds,
          budgetMs: (tables.budgetMinutes * 60_000 * work(ready)) / total,
          timeoutMs: options.timeoutMs,
          seed: options.seed,
          onProgress,
        }),
      );
      pairs.push(...ofModel);
    }
    return { pairs };
  });
}

/** What a token costs, up to a factor. */
function work({ model }: PreparedModel): number {
  const { layers, hidden, intermediate } = model.manifest.llm.spec;
  return layers * hidden * intermediate;
}
