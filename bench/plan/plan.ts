/** Finds by simulation how many workers a load needs, and compares such a simulation with what was measured. */

import type { CostModel } from '../../services/lib/numeric/cost-model.ts';
import type { LoadResult } from '../load/measure.ts';
import { arrivalTimes } from '../measure/arrivals.ts';
import type { Slo } from '../measure/latency.ts';
import { median, quantile } from '../measure/statistics.ts';
import { type Pools, type SimulatedLoad, type SimulatedRequest, simulate } from './simulate.ts';

export interface PlanRequest {
  /** Requests per second. */
  readonly rate: number;
  readonly promptTokens: number;
  readonly outputTokens: number;
  readonly slo: Slo;
  /** Share of requests that must meet the objective. */
  readonly target: number;
  readonly seed: number;
}

export interface Plan extends Pools {
  readonly rate: number;
  /** Requests per second that were simulated; if it is a k-th of the rate, the workers are multiplied by k. */
  readonly simulatedRate: number;
  /** Share of requests in the simulation that met the objective. */
  readonly attainment: number;
  /** False if no number of workers helps, because one request alone misses the objective. */
  readonly feasible: boolean;
}

/**
 * Approximate size of the larger pool in a simulation: a load that needs more workers is planned as a fraction of
 * itself.
 */
export const MOST_SIMULATED = 40;

/**
 * Lengths of the simulation, in residence times of a request among full batches. The ramp does not count, because
 * batches are not full yet.
 */
const SIMULATED = { ramp: 5, measured: 10, leastRequests: 2000 };

/** In a pool that is busier than this, the queue may grow too slowly for a simulation of some seconds to show it. */
const MAX_UTILISATION = 0.9;

/** More than the rounding errors of times, and far less than what is measured. */
const EPSILON_MS = 1e-6;

const within = (ms: number, bound = Number.POSITIVE_INFINITY) => ms <= bound + EPSILON_MS;
const meets = ({ ttft, tpot, e2e }: SimulatedRequest, slo: Slo) =>
  within(ttft, slo.ttft) && within(tpot ?? 0, slo.tpot) && within(e2e, slo.e2e);
const share = (requests: readonly SimulatedRequest[], slo: Slo) =>
  requests.filter((one) => meets(one, slo)).length / requests.length;

/**
 * Finds the pools that meet the objective once the load is steady. It begins with pools that the load keeps 90 % busy,
 * and lets the pool grow that causes more of the misses; then each pool shrinks until one worker less would miss the
 * objective. The result holds for the arrivals drawn, not for every possible burst. A load that needs more than about
 * 40 workers of a kind is planned as a k-th of itself, with k times the workers. That is an upper bound: k small
 * systems side by side cannot do better than one large system of all their workers.
 */
export function planPools(costs: CostModel, request: PlanRequest): Plan {
  const { rate, slo, target } = request;
  const scale = Math.max(1, Math.max(...Object.values(busyWorkers(costs, request))) / MOST_SIMULATED);
  const part = { ...request, rate: rate / scale };
  const planned = ({ prefill, decode }: Pools, attainment: number, feasible: boolean): Plan => ({
    prefill: Math.ceil(prefill * scale),
    // Requests of one output token need no decode worker, whatever the load.
    decode: request.outputTokens < 2 ? decode : Math.ceil(decode * scale),
    rate,
    simulatedRate: part.rate,
    attainment,
    feasible,
  });
  const stable = stablePools(costs, part);
  const alone = simulate(costs, { prefill: 1, decode: 1 }, { ...request, arrivalsMs: [0] })[0]!;
  if (!meets(alone, slo)) return planned(stable, 0, false);

  const { load, ramp } = steadyLoad(costs, part);
  const steady = (pools: Pools) => simulate(costs, pools, load).slice(ramp);
  let pools = stable;
  for (let requests = steady(pools); share(requests, slo) < target; requests = steady(pools)) {
    const missed = requests.filter((one) => !meets(one, slo));
    const dueToPrefill = missed.filter((one) => isDueToPrefill(one, alone, slo)).length;
    const key = 2 * dueToPrefill >= missed.length ? 'prefill' : 'decode';
    pools = { ...pools, [key]: Math.ceil(pools[key] * 1.1 + EPSILON_MS) };
  }
  for (const key of ['prefill', 'decode'] as const) {
    const suffices = (workers: number) => share(steady({ ...pools, [key]: workers }), slo) >= target;
    pools = { ...pools, [key]: least(stable[key], pools[key], suffices) };
  }
  return planned(pools, share(steady(pools), slo), true);
}

/**
 * Whether prefill is to blame for a request that missed the objective. It is if only TTFT is too long, and is not if
 * only TPOT is; otherwise the part that took longer, compared with a request alone, is to blame.
 */
function isDueToPrefill(one: SimulatedRequest, alone: SimulatedRequest, slo: Slo): boolean {
  const [first, rest] = [within(one.ttft, slo.ttft), within(one.tpot ?? 0, slo.tpot)];
  if (first !== rest) return !first;
  const waited = one.ttft - alone.ttft;
  return waited >= one.e2e - alone.e2e - waited;
}

/**
 * The least number from `low` to `high` that suffices, given that `high` does, and that all numbers above one that does
 * also do.
 */
function least(low: number, high: number, suffices: (value: number) => boolean): number {
  let [from, to] = [low, high];
  while (from < to) {
    const middle = Math.floor((from + to) / 2);
    if (suffices(middle)) to = middle;
    else from = middle + 1;
  }
  return to;
}

function steadyLoad(costs: CostModel, request: PlanRequest): { load: SimulatedLoad; ramp: number } {
  const { rate, promptTokens, outputTokens, seed } = request;
  const residenceMs = costs.prefillMs(promptTokens) + (outputTokens - 1) * costs.stepMs(costs.slots);
  const arriving = (residences: number) => Math.ceil((residences * rate * residenceMs) / 1000);
  const measured = Math.max(SIMULATED.leastRequests, arriving(SIMULATED.measured));
  // The queues of a few workers take longer to fill than one residence time.
  const ramp = Math.max(arriving(SIMULATED.ramp), Math.ceil(measured / 10));
  const arrivalsMs = arrivalTimes({ kind: 'poisson', rate, count: ramp + measured, seed });
  return { load: { arrivalsMs, promptTokens, outputTokens }, ramp };
}

/** Number of workers that the load keeps as busy as is allowed; it may be a fraction. */
function busyWorkers(costs: CostModel, { rate, promptTokens, outputTokens }: PlanRequest): Pools {
  const workers = (busyMsPerSecond: number) => busyMsPerSecond / 1000 / MAX_UTILISATION;
  return {
    prefill: workers(rate * costs.prefillMs(promptTokens)),
    decode: workers(((rate * (outputTokens - 1)) / costs.slots) * costs.stepMs(costs.slots)),
  };
}

/** The smallest pools that the load does not keep busier than that. */
function stablePools(costs: CostModel, request: PlanRequest): Pools {
  const { prefill, decode } = busyWorkers(costs, request);
  return { prefill: Math.max(1, Math.ceil(prefill)), decode: Math.max(1, Math.ceil(decode)) };
}

export interface Validation {
  readonly rate: number;
  readonly figures: readonly { readonly name: string; readonly measured: number; readonly simulated: number }[];
}

/**
 * Simulates the arrivals of measured runs on the same pools. The warm-up is left out of both. Runs of a trace are not
 * simulated, because their requests differ in length.
 */
export function validate(costs: CostModel, { workload, slo, deployments, trace }: LoadResult): Validation[] {
  if (trace !== undefined) return [];
  const measured = deployments.find(({ deployment }) => deployment === 'disaggregated 1P:1D');
  return (measured?.probes ?? []).flatMap(({ rate, result }) => {
    const { summary, records } = result;
    if (summary.ok === 0) return [];
    const arrivalsMs = records.map(({ intendedMs }) => intendedMs).sort((a, b) => a - b);
    const load = { arrivalsMs, promptTokens: workload.promptTokens, outputTokens: workload.outputTokens };
    const simulated = simulate(costs, { prefill: 1, decode: 1 }, load).slice(workload.warmup);
    const ttfts = simulated.map(({ ttft }) => ttft);
    const tpots = simulated.flatMap(({ tpot }) => tpot ?? []);
    const ends = simulated.map(({ e2e }) => e2e);
    return [
      {
        rate,
        figures: [
          { name: 'TTFT p50, ms', measured: summary.ttft.p50, simulated: median(ttfts) },
          { name: 'TTFT p90, ms', measured: summary.ttft.p90, simulated: quantile(ttfts, 0.9) },
          { name: 'TPOT p50, ms', measured: summary.tpot.p50, simulated: median(tpots) },
          { name: 'end to end p50, ms', measured: summary.e2e.p50, simulated: median(ends) },
          {
            name: 'attainment, %',
            measured: 100 * (summary.attainment ?? 0),
            simulated: 100 * share(simulated, slo),
          },
        ],
      },
    ];
  });
}
