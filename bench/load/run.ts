/** Runs `bench load` on one deployment after the other. */
import { type OnProgress, run } from '../harness/run.ts';
import { prepareModel, type SystemUnderTest, withSystems } from '../harness/systems.ts';
import { highestPassed } from '../measure/highest-rate.ts';
import type { Slo } from '../measure/latency.ts';
import type { PlannedRequest } from '../measure/load-client.ts';
import { onlyModel, pick } from '../options.ts';
import type { Artifact } from '../report/artifact.ts';
import { COLOCATED } from '../system/deployment.ts';
import type { PromptMaker } from '../system/prompts.ts';
import { type LoadOptions, WORKLOAD_OPTIONS } from './command.ts';
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
} from './measure.ts';
import { LOAD } from './report.ts';

export async function runLoad(options: LoadOptions): Promise<Artifact<LoadResult>> {
  const prepared = await prepareModel(onlyModel(options), options);
  const { model, prompts } = prepared;
  const { pinning, targetTtftMs, timeoutMs, seed } = options;
  return run(LOAD, options, { models: [model], settings: options }, async (onProgress) => {
    const recorded =
      options.trace === undefined ? undefined : await planTrace(prompts, options.trace, options.capacity);
    const deployments: DeploymentLoad[] = [];
    let objective: Objective | undefined;
    // One deployment at a time: under load, an idle one beside it is not idle enough.
    for (const deployment of [COLOCATED, ...options.splits]) {
      await withSystems(options, prepared, { deployments: [deployment], pinning, targetTtftMs }, async ([system]) => {
        onProgress(`${system!.name}: without load`);
        objective ??= await objectiveOf(system!, prompts, options);
        deployments.push(await measure(system!, prompts, options, objective, recorded?.plan, onProgress));
      });
      if (options.url !== undefined) break;
    }
    return {
      model: model.name,
      slo: objective!.slo,
      target: TARGET,
      workload: { ...pick(WORKLOAD_OPTIONS, options), timeoutMs, seed },
      trace: recorded?.trace,
      deployments,
    };
  });
}

interface Objective {
  readonly slo: Slo;
  /** Requests per second that a sweep begins with: half of what one request at a time would be. */
  readonly startRate: number;
}

async function objectiveOf({ url }: SystemUnderTest, prompts: PromptMaker, options: LoadOptions): Promise<Objective> {
  const unloaded = await measureUnloaded(url, prompts, options);
  return { slo: options.slo ?? relativeSlo(unloaded), startRate: 500 / unloaded.e2e };
}

async function measure(
  { name: deployment, url }: SystemUnderTest,
  prompts: PromptMaker,
  workload: LoadOptions,
  { slo, startRate }: Objective,
  plan: readonly PlannedRequest[] | undefined,
  onProgress: OnProgress,
): Promise<DeploymentLoad> {
  const { rate: rates, probes } = workload;
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
