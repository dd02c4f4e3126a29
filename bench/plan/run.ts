/** `llavacode plan` */

import { run } from '../harness/run.ts';
import { type BenchOptions, prepareModel, systemSettings, withSystems } from '../harness/systems.ts';
import type { LoadResult } from '../load/measure.ts';
import { TARGET } from '../load/measure.ts';
import { formatSlo, type Slo } from '../measure/latency.ts';
import { type Artifact, readArtifact } from '../report/artifact.ts';
import { divideCores, parseCores } from '../system/cores.ts';
import { DISAGGREGATED } from '../system/system.ts';
import { fitCosts, type Rates } from './cost-model.ts';
import { planPools, validate } from './plan.ts';
import { measureDecode, measurePrefill, type RatesOptions } from './rates.ts';
import type { PlanResult } from './result.ts';

export interface PlanOptions {
  readonly model: string;
  /** Requests per second to plan for. */
  readonly rates: readonly number[];
  readonly promptTokens: number;
  readonly outputTokens: number;
  readonly slo: Slo | undefined;
  /** Artifact of `bench load`: what the simulation is held against, and whose objective is taken where none is given. */
  readonly load: string | undefined;
  readonly measure: Omit<RatesOptions, 'timeoutMs' | 'capacity'>;
}

export async function runPlan(options: BenchOptions, plan: PlanOptions): Promise<Artifact<PlanResult>> {
  const prepared = await prepareModel(plan.model, options);
  const load = plan.load === undefined ? undefined : await readArtifact<LoadResult>(plan.load);
  return run(
    options,
    { bench: 'plan', models: [prepared.model], settings: { ...systemSettings(options), ...plan, pinning: 'split' } },
    async (onProgress) => {
      onProgress('measuring prompts and decode steps');
      const how = { ...plan.measure, capacity: options.capacity, timeoutMs: options.timeoutMs };
      const measured = await withSystems(
        options,
        prepared,
        { deployments: [DISAGGREGATED], pinning: 'split' },
        async ([system]) => ({
          prefill: await measurePrefill(system!.url, prepared.prompts, how),
          decode: await measureDecode(system!.url, prepared.prompts, how),
        }),
      );
      const [prefillCores, decodeCores] = divideCores(parseCores(options.cores), 2, 'split').map(
        ({ length }) => length,
      );
      const rates: Rates = {
        model: prepared.model.name,
        ...measured,
        coresPerWorker: [prefillCores ?? 1, decodeCores ?? 1],
        slots: options.slots,
      };
      const costs = fitCosts(rates);
      const { promptTokens, outputTokens } = plan;
      const slo = plan.slo ??
        load?.result.slo ?? {
          ttft: Math.ceil(3 * costs.prefillMs(promptTokens)),
          tpot: Math.ceil(3 * costs.stepMs(1)),
        };
      const request = { promptTokens, outputTokens, slo, target: TARGET, seed: options.seed };
      onProgress(`simulating, ${formatSlo(slo)}`);
      return {
        rates,
        request,
        plans: plan.rates.map((rate) => planPools(costs, { ...request, rate })),
        validation: load === undefined ? [] : validate(costs, load.result),
      };
    },
  );
}
