/** How many workers a load needs, going by simulation; and how far such a simulation was from what was measured. */
import type { LoadResult } from '../load.ts';
import { arrivalTimes } from '../measure/arrivals.ts';
import type { Slo } from '../measure/latency.ts';
import { median, quantile } from '../measure/statistics.ts';
import type { CostModel } from './cost-model.ts';
import { type Pools, type SimulatedRequest, simulate } from './simulate.ts';

export interface PlanRequest {
  /** Requests per second. */
  readonly rate: number;
  readonly promptTokens: number;
  readonly outputTokens: number;
  readonly slo: Slo;
  /** Share of requests that has to meet the objective. */
  readonly target: number;
  readonly seed: number;
}

export interface Plan extends Pools {
  readonly rate: number;
  readonly attainment: number;
  /** False where no number of workers helps: one request alone misses the objective. */
  readonly feasible: boolean;
}

/** Requests simulated: enough that queues show, and at most so many. */
const SIMULATED = { least: 400, seconds: 20, most: 40_000 };

const meets = ({ ttft, tpot }: SimulatedRequest, slo: Slo, key: 'ttft' | 'tpot') =>
  (key === 'ttft' ? ttft : (tpot ?? 0)) <= (slo[key] ?? Number.POSITIVE_INFINITY);

/**
 * The pools that meet the objective: from what the load keeps 90 % busy upwards, the pool that fails grows (by one,
 * or by 2 % where it is large). The smallest pair for the arrivals drawn, not for every burst that could be.
 */
export function planPools(costs: CostModel, request: PlanRequest): Plan {
  const { rate, promptTokens, outputTokens, slo, target, seed } = request;
  const count = Math.min(SIMULATED.most, Math.max(SIMULATED.least, Math.ceil(rate * SIMULATED.seconds)));
  const load = { arrivalsMs: arrivalTimes({ kind: 'poisson', rate, count, seed }), promptTokens, outputTokens };
  const attainment = (requests: readonly SimulatedRequest[], keys: readonly ('ttft' | 'tpot')[]) =>
    requests.filter((one) => keys.every((key) => meets(one, slo, key))).length / requests.length;
  const alone = simulate(costs, { prefill: 1, decode: 1 }, { ...load, arrivalsMs: [0] });
  const pools = { ...stablePools(costs, request) };
  if (attainment(alone, ['ttft', 'tpot']) < 1) return { ...pools, rate, attainment: 0, feasible: false };
  const grown = (workers: number) => Math.max(workers + 1, Math.ceil(workers * 1.02));
  for (;;) {
    const requests = simulate(costs, pools, load);
    const both = attainment(requests, ['ttft', 'tpot']);
    if (both >= target) return { ...pools, rate, attainment: both, feasible: true };
    if (attainment(requests, ['ttft']) <= attainment(requests, ['tpot'])) pools.prefill = grown(pools.prefill);
    else pools.decode = grown(pools.decode);
  }
}

/** A pool that is busier than this has a queue that grows more slowly than a simulation of some seconds can see. */
const MAX_UTILISATION = 0.9;

/** The smallest pools that the load does not keep busier than that. */
function stablePools(costs: CostModel, { rate, promptTokens, outputTokens }: PlanRequest): Pools {
  const [prefillMs, stepMs] = [costs.prefillMs(promptTokens), costs.stepMs(costs.slots)];
  const workers = (busyMsPerSecond: number) => Math.max(1, Math.ceil(busyMsPerSecond / 1000 / MAX_UTILISATION));
  return {
    prefill: workers(rate * prefillMs),
    decode: workers(((rate * (outputTokens - 1)) / costs.slots) * stepMs),
  };
}

export interface Validation {
  readonly rate: number;
  readonly figures: readonly { readonly name: string; readonly measured: number; readonly simulated: number }[];
}

/** The arrivals of a measured run, simulated on the same pools; warm-up is left out of both. */
export function validate(costs: CostModel, { workload, slo, deployments }: LoadResult): Validation[] {
  const measured = deployments.find(({ deployment }) => deployment === 'disaggregated 1P:1D');
  return (measured?.probes ?? []).flatMap(({ rate, result }) => {
    const { summary, records } = result;
    if (summary.ok === 0) return [];
    const arrivalsMs = records.map(({ intendedMs }) => intendedMs).sort((a, b) => a - b);
    const load = { arrivalsMs, promptTokens: workload.promptTokens, outputTokens: workload.outputTokens };
    const simulated = simulate(costs, { prefill: 1, decode: 1 }, load).slice(workload.warmup);
    const ttfts = simulated.map(({ ttft }) => ttft);
    const met = simulated.filter((one) => meets(one, slo, 'ttft') && meets(one, slo, 'tpot')).length;
    return [
      {
        rate,
        figures: [
          { name: 'TTFT p50, ms', measured: summary.ttft.p50, simulated: median(ttfts) },
          { name: 'TTFT p90, ms', measured: summary.ttft.p90, simulated: quantile(ttfts, 0.9) },
          {
            name: 'TPOT p50, ms',
            measured: summary.tpot.p50,
            simulated: median(simulated.flatMap(({ tpot }) => tpot ?? [])),
          },
          {
            name: 'attainment, %',
            measured: 100 * (summary.attainment ?? 0),
            simulated: (100 * met) / simulated.length,
          },
        ],
      },
    ];
  });
}
