/** Runs `bench tables` on both deployments, one model after the other. */
import { run } from '../harness/run.ts';
import { assertNoUrl, type PreparedModel, prepareModel, withSystems } from '../harness/systems.ts';
import type { Artifact } from '../report/artifact.ts';
import { BOTH } from '../system/deployment.ts';
import type { TablesOptions } from './command.ts';
import { measureTables, type Pair, type TablesResult } from './measure.ts';
import { TABLES } from './report.ts';

/** Both workers may use every core, as the paper's share one GPU. One request at a time needs few slots. */
const PLAN = { deployments: BOTH, pinning: 'shared', slots: 2 } as const;

export async function runTables(options: TablesOptions): Promise<Artifact<TablesResult>> {
  assertNoUrl(options, 'tables', 'both modes');
  const prepared: PreparedModel[] = [];
  for (const name of options.models) prepared.push(await prepareModel(name, options));
  const { pinning, slots } = PLAN;
  const plan = { models: prepared.map(({ model }) => model), settings: { ...options, pinning, slots } };
  return run(TABLES, options, plan, async (onProgress) => {
    const pairs: Pair[] = [];
    const total = prepared.reduce((sum, ready) => sum + workOf(ready), 0);
    for (const ready of prepared) {
      const ofModel = await withSystems(options, ready, PLAN, (systems) =>
        measureTables({
          model: ready.model.name,
          systems: systems.map(({ url, deployment }) => ({ url, mode: deployment!.mode })),
          prompts: ready.prompts,
          rounds: options.rounds,
          // Models share the budget in proportion to their sizes, so that all get about as many rounds.
          budgetMs: (options.minutes * 60_000 * workOf(ready)) / total,
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

/** The work that one token costs, up to a constant factor. */
function workOf({ model }: PreparedModel): number {
  const { layers, hidden, intermediate } = model.manifest.llm.spec;
  return layers * hidden * intermediate;
}
