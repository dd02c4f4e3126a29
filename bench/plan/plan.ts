/** How many workers a load needs, going by simulation; and how far such a simulation was from what was measured. */
import type { LoadResult } from '../load/measure.ts';
import { arrivalTimes } from '../measure/arrivals.ts';
import type { Slo } from '../measure/latency.ts';
import { median, quantile } from '../measure/statistics.ts';
import type { CostModel } from './cost-model.ts';
import { type Pools, type SimulatedLoad, type SimulatedRequest, simulate } from './simulate.ts';

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
  /** Requests per second that were simulated; the workers are multiplied by what it is smaller. */
  readonly simulatedRate: number;
  /** In the simulation. */
  readonly attainment: number;
  /** False where no number of workers helps: one request alone misses the objective. */
  readonly feasible: boolean;
}

/** The larger pool, about, of what is simulated: a load that needs more is planned as a fraction of itself. */
export const MOST_SIMULATED = 40;

/** The ramp does not count: nothing is full yet. Both in residence times, of a request among full batches. */
const SIMULATED = { ramp: 5, measured: 10, leastRequests: 2000 };

/** A pool that is busier than this has a queue that grows more slowly than a simulation of some seconds can see. */
const MAX_UTILISATION = 0.9;

/** Above rounding errors of times, far below what is measured. */
const EPSILON_MS = 1e-6;

const within = (ms: number, bound = Number.POSITIVE_INFINITY) => ms <= bound + EPSILON_MS;
const meets = ({ ttft, tpot, e2e }: SimulatedRequest, slo: Slo) =>
  within(ttft, slo.ttft) && within(tpot ?? 0, slo.tpot) && within(e2e, slo.e2e);
const share = (requests: readonly SimulatedRequest[], slo: Slo) =>
  requests.filter((one) => meets(one, slo)).length / requests.length;

/**
 * The pools that meet the objective once the load is steady: from what it keeps 90 % busy upwards, the pool that more
 * misses are due to grows; then each shrinks to where one worker less misses the objective. That holds for the arrivals
 * drawn, not for every burst that could be. A load that needs more than some 40 workers of a kind is planned as a k-th of
 * it, with k times the workers: an upper bound, for k such systems side by side can do nothing that one of them all cannot.
 */
export function planPools(costs: CostModel, request: PlanRequest): Plan {
  const { rate, slo, target } = request;
  const scale = Math.max(1, Math.max(...Object.values(busyWorkers(costs, request))) / MOST_SIMULATED);
  const part = { ...request, rate: rate / scale };
  const planned = ({ prefill, decode }: Pools, attainment: number, feasible: boolean): Plan => ({
    prefill: Math.ceil(prefill * scale),
    // One token needs none of them, whatever the load.
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
    const ofPrefill = missed.filter((one) => isDueToPrefill(one, alone, slo)).length;
    const key = 2 * ofPrefill >= missed.length ? 'prefill' : 'decode';
    pools = { ...pools, [key]: Math.ceil(pools[key] * 1.1 + EPSILON_MS) };
  }
  for (const key of ['prefill', 'decode'] as const) {
    const suffices = (workers: number) => share(steady({ ...pools, [key]: workers }), slo) >= target;
    pools = { ...pools, [key]: least(stable[key], pools[key], suffices) };
  }
  return planned(pools, share(steady(pools), slo), true);
}

/** Of a request that missed: by its first token, by the ones after it, or by the part that took the longer than alone. */
function isDueToPrefill(one: SimulatedRequest, alone: SimulatedRequest, slo: Slo): boolean {
  const [first, rest] = [within(one.ttft, slo.ttft), within(one.tpot ?? 0, slo.tpot)];
  if (first !== rest) return !first;
  const waited = one.ttft - alone.ttft;
  return waited >= one.e2e - alone.e2e - waited;
}

/** The least whole number that suffices, where `high` does and what is above one that does, does too. */
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
  // Queues of few workers take longer to fill than their requests stay.
  const ramp = Math.max(arriving(SIMULATED.ramp), Math.ceil(measured / 10));
  const arrivalsMs = arrivalTimes({ kind: 'poisson', rate, count: ramp + measured, seed });
  return { load: { arrivalsMs, promptTokens, outputTokens }, ramp };
}

/** How many workers the load keeps as busy as is allowed; a fraction too. */
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

/** The arrivals of a measured run, simulated on the same pools; warm-up is left out of both. A trace has no one length. */
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
