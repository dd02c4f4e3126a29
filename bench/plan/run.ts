/** Runs `llavacode plan`: measures rates, fits a cost model to them, and simulates the load. */

import { type CostModel, fitCosts, type Rates } from '../../services/lib/numeric/cost-model.ts';
import { type OnProgress, run } from '../harness/run.ts';
import { type PreparedModel, prepareModel, withSystems } from '../harness/systems.ts';
import { type LoadResult, TARGET } from '../load/measure.ts';
import { formatSlo, type Slo } from '../measure/latency.ts';
import { onlyModel } from '../options.ts';
import { type Artifact, readArtifact } from '../report/artifact.ts';
import { divideCores } from '../system/cores.ts';
import { DISAGGREGATED } from '../system/deployment.ts';
import type { PlanOptions } from './command.ts';
import { planPools, validate } from './plan.ts';
import { measureDecode, measurePrefill } from './rates.ts';
import { PLAN } from './report.ts';
import type { PlanResult } from './result.ts';

/** The rates that are measured: prompt lengths in tokens, batch sizes, and tokens that each sequence generates. */
const MEASURE = { promptTokens: [250, 500, 1000, 2000], batches: [1, 2, 4, 8], repeats: 3, decodeTokens: 256 };
const PINNING = 'split';

export async function runPlan(options: PlanOptions): Promise<Artifact<PlanResult>> {
  const prepared = await prepareModel(onlyModel(options), options);
  const load = options.load === undefined ? undefined : await readArtifact<LoadResult>(options.load);
  const settings = { ...options, measure: MEASURE, pinning: PINNING };
  return run(PLAN, options, { models: [prepared.model], settings }, async (onProgress) => {
    const rates = await measureRates(options, prepared, onProgress);
    const costs = fitCosts(rates);
    const slo = options.slo ?? load?.result.slo ?? relativeSlo(costs, options.promptTokens);
    const { promptTokens, outputTokens, seed } = options;
    const request = { promptTokens, outputTokens, slo, target: TARGET, seed };
    onProgress(`simulating, ${formatSlo(slo)}`);
    return {
      rates,
      request,
      plans: options.rate.map((rate) => planPools(costs, { ...request, rate })),
      validation: load === undefined ? [] : validate(costs, load.result),
    };
  });
}

async function measureRates(options: PlanOptions, prepared: PreparedModel, onProgress: OnProgress): Promise<Rates> {
  onProgress('measuring prompts and decode steps');
  const { cores, slots, capacity, timeoutMs } = options;
  const how = { ...MEASURE, capacity, timeoutMs };
  const plan = { deployments: [DISAGGREGATED], pinning: PINNING } as const;
  const measured = await withSystems(options, prepared, plan, async ([system]) => ({
    prefill: await measurePrefill(system!.url, prepared.prompts, how),
    decode: await measureDecode(system!.url, prepared.prompts, how),
  }));
  const [prefillCores = [], decodeCores = []] = divideCores(cores, 2, PINNING);
  return {
    model: prepared.model.name,
    ...measured,
    coresPerWorker: [prefillCores.length || 1, decodeCores.length || 1],
    slots,
  };
}

/** The objective if none is given: three times what a request takes alone. */
const relativeSlo = (costs: CostModel, promptTokens: number): Slo => ({
  ttft: Math.ceil(3 * costs.prefillMs(promptTokens)),
  tpot: Math.ceil(3 * costs.stepMs(1)),
});
