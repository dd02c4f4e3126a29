/** `bench load`: an open-loop load on one deployment after the other, at one rate, along a trace, or swept over rates. */
import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { ServingError } from '../../services/lib/process/errors.ts';
import { type Arrivals, arrivalTimes, RandomStream } from '../measure/arrivals.ts';
import { highestPassed, type Probe, searchHighestRate } from '../measure/highest-rate.ts';
import { e2e, type LoadSummary, type RequestRecord, type Slo, summarise, tpot, ttft } from '../measure/latency.ts';
import { type PlannedRequest, runOpenLoop, sendOne } from '../measure/load-client.ts';
import { median } from '../measure/statistics.ts';
import { parseTrace } from '../measure/trace.ts';
import { type ContextMode, type PromptMaker, SOFT_TOKENS } from '../system/prompts.ts';

export interface Workload {
  readonly arrivals: Arrivals;
  readonly burstiness: number;
  /** Requests of one run, warm-up included; unless it is to last a time. */
  readonly requests: number;
  /** Of one run, at whatever rate. */
  readonly seconds?: number;
  /** The first so many do not count. */
  readonly warmup: number;
  readonly promptTokens: number;
  readonly outputTokens: number;
  readonly context: ContextMode;
  /** Share of requests whose client hangs up, at a random time of the first `cancelWithinMs`. */
  readonly cancelRate: number;
  readonly cancelWithinMs: number;
  readonly timeoutMs: number;
  readonly seed: number;
}

/** One run at one rate. */
export interface LoadRun {
  readonly summary: LoadSummary;
  readonly records: readonly RequestRecord[];
}

export interface DeploymentLoad {
  readonly deployment: string;
  readonly probes: readonly Probe<LoadRun>[];
  /** Highest rate, in requests per second, that met the objective; 0 where none did. */
  readonly highestRate: number;
}

export interface LoadResult {
  readonly model: string;
  readonly slo: Slo;
  /** Share of requests that has to meet the objective. */
  readonly target: number;
  readonly workload: Workload;
  /** Where requests came from a file instead. */
  readonly trace?: TraceFile;
  readonly deployments: readonly DeploymentLoad[];
}

/** Share of requests within the objective that DistServe, and we, ask for. */
export const TARGET = 0.9;

/** Tokens that the context of a prompt takes. */
export const contextTokens = (context: ContextMode) => ({ compressed: SOFT_TOKENS, text: 500, off: 0 })[context];

/** @throws ServingError invalid_request where warming up leaves nothing to measure. */
export function planRequests(prompts: PromptMaker, workload: Workload, rate: number): PlannedRequest[] {
  const { arrivals: kind, burstiness, seed, context, promptTokens, outputTokens, seconds } = workload;
  const count = seconds === undefined ? workload.requests : Math.ceil(rate * seconds);
  if (workload.warmup >= count) {
    throw new ServingError('invalid_request', `${count} requests leave none after --warmup ${workload.warmup}`);
  }
  const random = new RandomStream(seed + 1);
  return arrivalTimes({ kind, rate, count, burstiness, seed }).map((atMs, i) => ({
    atMs,
    body: {
      ...prompts.make(seed + i, { tokens: promptTokens, context, contextTokens: contextTokens(context) }),
      ...generation(outputTokens),
    },
    ...(random.uniform() < workload.cancelRate && { cancelAfterMs: random.uniform() * workload.cancelWithinMs }),
  }));
}

export interface TraceFile {
  readonly file: string;
  readonly requests: number;
  /** Requests whose prompt was longer than a slot holds, and was cut. */
  readonly clipped: number;
}

/** Requests of a trace file, which say themselves when they come, how long they are, and which share their beginnings. */
export async function planTrace(
  prompts: PromptMaker,
  file: string,
  capacity: number,
): Promise<{ plan: PlannedRequest[]; trace: TraceFile }> {
  const lines = parseTrace(await readFile(file, 'utf8'));
  let clipped = 0;
  const plan = lines.map(({ atMs, inputTokens, outputTokens, blocks }, i) => {
    const output = Math.min(outputTokens, capacity - 1);
    const input = Math.min(inputTokens, capacity - output);
    if (input < inputTokens) clipped++;
    const prompt = prompts.blocks(
      blocks.length > 0 ? blocks : Array.from({ length: input }, (_, k) => i * 31 + k),
      input,
    );
    return { atMs, body: { prompt, ...generation(output), ...(blocks.length === 0 && { cache_salt: randomUUID() }) } };
  });
  return { plan, trace: { file, requests: plan.length, clipped } };
}

/** Outputs of full length, the same in every run. */
const generation = (tokens: number) => ({ max_tokens: tokens, temperature: 0, ignore_eos: true });

export async function measureLoad(
  url: string,
  plan: readonly PlannedRequest[],
  { timeoutMs, warmup }: Pick<Workload, 'timeoutMs' | 'warmup'>,
  slo: Slo | undefined,
  onProgress: (ended: number) => void,
): Promise<LoadRun> {
  let ended = 0;
  const records = await runOpenLoop(url, plan, { timeoutMs, onRecord: () => onProgress(++ended) });
  return { records, summary: summarise(records, { warmup, slo }) };
}

/** Requests one at a time: what the system does without load. The first of them does not count. */
export async function measureUnloaded(url: string, prompts: PromptMaker, workload: Workload, requests = 5) {
  const records: RequestRecord[] = [];
  const startMs = performance.now();
  for (const { body } of planRequests(
    prompts,
    { ...workload, seconds: undefined, requests: requests + 1, warmup: 1, cancelRate: 0 },
    1,
  )) {
    const request = { atMs: performance.now() - startMs, body };
    const record = await sendOne(url, request, records.length, startMs, workload);
    if (record.outcome !== 'ok') throw new ServingError('internal', `a request without load failed: ${record.code}`);
    records.push(record);
  }
  const counted = records.slice(1);
  return {
    ttft: median(counted.map(ttft)),
    tpot: median(counted.flatMap((record) => tpot(record) ?? [])),
    e2e: median(counted.map(e2e)),
  };
}

/** An objective where none is given: three times what the system does without load. */
export const relativeSlo = ({ ttft, tpot }: { ttft: number; tpot: number }): Slo => ({
  ttft: Math.ceil(3 * ttft),
  ...(Number.isFinite(tpot) && { tpot: Math.ceil(3 * tpot) }),
});

export interface SweepOptions {
  readonly url: string;
  readonly deployment: string;
  readonly prompts: PromptMaker;
  readonly workload: Workload;
  readonly slo: Slo;
  /** Requests per second to begin with. */
  readonly startRate: number;
  readonly probes: number;
  readonly onProgress: (text: string) => void;
}

/** The curve of attainment over rates, and the highest rate that meets the objective. */
export async function sweep(options: SweepOptions): Promise<DeploymentLoad> {
  const { url, deployment, prompts, workload, slo, startRate, probes: limit, onProgress } = options;
  const probe = async (rate: number) => {
    const plan = planRequests(prompts, workload, rate);
    const result = await measureLoad(url, plan, workload, slo, (ended) =>
      onProgress(`${deployment}: ${rate.toFixed(2)} requests/s, ${ended} of ${plan.length}`),
    );
    return { passed: (result.summary.attainment ?? 0) >= TARGET, result };
  };
  const probes = await searchHighestRate(probe, { start: startRate, bisections: limit, limit });
  return { deployment, probes, highestRate: highestPassed(probes) };
}

/** The given rates, one after the other. */
export async function measureRates(
  options: Omit<SweepOptions, 'startRate' | 'probes'> & { readonly rates: readonly number[] },
): Promise<DeploymentLoad> {
  const probes: Probe<LoadRun>[] = [];
  for (const rate of options.rates) {
    const once = await sweep({ ...options, startRate: rate, probes: 1 });
    probes.push(...once.probes);
  }
  return { deployment: options.deployment, probes, highestRate: highestPassed(probes) };
}
