/** `llavacode bench load` */

import { run } from '../harness/run.ts';
import {
  type BenchOptions,
  prepareModel,
  type SystemUnderTest,
  systemSettings,
  withSystems,
} from '../harness/systems.ts';
import { highestPassed } from '../measure/highest-rate.ts';
import type { Slo } from '../measure/latency.ts';
import type { PlannedRequest } from '../measure/load-client.ts';
import type { Artifact } from '../report/artifact.ts';
import type { Pinning } from '../system/cores.ts';
import type { PromptMaker } from '../system/prompts.ts';
import type { Deployment } from '../system/system.ts';
import {
  type DeploymentLoad,
  type LoadResult,
  measureLoad,
  measureRates,
  measureUnloaded,
  planTrace,
  relativeSlo,
  sweep,
  TARGET,
  type Workload,
} from './measure.ts';

export interface LoadOptions {
  readonly model: string;
  readonly deployments: readonly Deployment[];
  readonly pinning: Pinning;
  readonly workload: Workload;
  /** Undefined: relative to what the first deployment does without load. */
  readonly slo: Slo | undefined;
  /** Requests per second; empty for a sweep. */
  readonly rates: readonly number[];
  /** Rates that a sweep tries on each deployment. */
  readonly probes: number;
  /** What would wait longer is refused; undefined admits all. */
  readonly targetTtftMs: number | undefined;
  /** Trace file, instead of rates. */
  readonly trace: string | undefined;
}

export async function runLoad(options: BenchOptions, load: LoadOptions): Promise<Artifact<LoadResult>> {
  const prepared = await prepareModel(load.model, options);
  const { model, prompts } = prepared;
  const { workload, deployments, pinning, targetTtftMs } = load;
  const settings = { ...systemSettings(options), ...load };
  return run(options, { bench: 'load', models: [model], settings }, async (onProgress) => {
    const recorded = load.trace === undefined ? undefined : await planTrace(prompts, load.trace, options.capacity);
    const measured: DeploymentLoad[] = [];
    let objective: { slo: Slo; startRate: number } | undefined;
    // One deployment at a time: under load, an idle one is not idle enough.
    for (const deployment of deployments) {
      await withSystems(options, prepared, { deployments: [deployment], pinning, targetTtftMs }, async ([system]) => {
        onProgress(`${system!.name}: without load`);
        objective ??= await objectiveOf(system!, prompts, load);
        measured.push(await measure(system!, prompts, load, objective, recorded?.plan, onProgress));
      });
      if (options.url !== undefined) break;
    }
    const what = { model: model.name, slo: objective!.slo, target: TARGET, workload, trace: recorded?.trace };
    return { ...what, deployments: measured };
  });
}

/** A sweep begins at half of what one request at a time would be. */
async function objectiveOf({ url }: SystemUnderTest, prompts: PromptMaker, { workload, slo }: LoadOptions) {
  const unloaded = await measureUnloaded(url, prompts, workload);
  return { slo: slo ?? relativeSlo(unloaded), startRate: 500 / unloaded.e2e };
}

async function measure(
  { name: deployment, url }: SystemUnderTest,
  prompts: PromptMaker,
  { workload, rates, probes }: LoadOptions,
  { slo, startRate }: { slo: Slo; startRate: number },
  plan: readonly PlannedRequest[] | undefined,
  onProgress: (text: string) => void,
): Promise<DeploymentLoad> {
  const options = { url, deployment, prompts, workload, slo, onProgress };
  if (plan === undefined) {
    return rates.length > 0 ? measureRates({ ...options, rates }) : sweep({ ...options, startRate, probes });
  }
  const result = await measureLoad(url, plan, { ...workload, warmup: 0 }, slo, (ended) =>
    onProgress(`${deployment}: ${ended} of ${plan.length} requests of the trace`),
  );
  const seconds = Math.max(1, (plan.at(-1)?.atMs ?? 0) / 1000);
  const passed = (result.summary.attainment ?? 0) >= TARGET;
  const probe = { rate: plan.length / seconds, passed, result };
  return { deployment, probes: [probe], highestRate: highestPassed([probe]) };
}
