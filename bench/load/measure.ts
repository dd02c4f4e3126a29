/** `bench load` puts an open-loop load on a system: at one rate, along a trace, or swept over rates. */
import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { ServingError } from '../../services/lib/process/errors.ts';
import { arrivalTimes, RandomStream } from '../measure/arrivals.ts';
import { highestPassed, type Probe, searchHighestRate } from '../measure/highest-rate.ts';
import { type ClientRecord, e2e, type LoadSummary, type Slo, summarise, tpot, ttft } from '../measure/latency.ts';
import { type PlannedRequest, runOpenLoop, sendOne } from '../measure/load-client.ts';
import { median } from '../measure/statistics.ts';
import { parseTrace } from '../measure/trace.ts';
import { contextTokens } from '../system/context.ts';
import type { PromptMaker } from '../system/prompts.ts';
import type { Workload } from './command.ts';

/** One run at one rate. */
interface LoadRun {
  readonly summary: LoadSummary;
  readonly records: readonly ClientRecord[];
}

export interface DeploymentLoad {
  readonly deployment: string;
  readonly probes: readonly Probe<LoadRun>[];
  /** Highest rate in requests per second that met the objective; 0 if none did. */
  readonly highestRate: number;
}

export interface LoadResult {
  readonly model: string;
  readonly slo: Slo;
  /** Share of requests that has to meet the objective. */
  readonly target: number;
  readonly workload: Workload;
  /** The trace, if the requests came from one. */
  readonly trace?: TraceFile;
  readonly deployments: readonly DeploymentLoad[];
}

/** Share of requests that must meet the objective: DistServe asks for the same. */
export const TARGET = 0.9;

/** @throws ServingError invalid_request if the warm-up leaves nothing to measure. */
function planRequests(prompts: PromptMaker, workload: Workload, rate: number): PlannedRequest[] {
  const { arrivals: kind, burstiness, seed, context, promptTokens, outputTokens, seconds } = workload;
  const count = seconds === undefined ? workload.requests : Math.ceil(rate * seconds);
  if (workload.warmup >= count) {
    throw new ServingError(
      'invalid_request',
      `--warmup ${workload.warmup} leaves none of the ${count} requests of a run: make it smaller, or the run longer`,
    );
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

interface TraceFile {
  readonly file: string;
  readonly requests: number;
  /** Requests whose prompt was cut because it was longer than a slot holds. */
  readonly clipped: number;
}

/** Plans the requests of a trace file, which gives their times, their lengths and the prefixes that they share. */
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
    const own = Array.from({ length: input }, (_, k) => i * 31 + k);
    const prompt = prompts.blocks(blocks.length > 0 ? blocks : own, input);
    return { atMs, body: { prompt, ...generation(output), ...(blocks.length === 0 && { cache_salt: randomUUID() }) } };
  });
  return { plan, trace: { file, requests: plan.length, clipped } };
}

/** Greedy outputs of full length, which are the same in every run. */
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

/** Medians of requests sent one at a time: what the system does without load. The first one does not count. */
export async function measureUnloaded(url: string, prompts: PromptMaker, workload: Workload, requests = 5) {
  const records: ClientRecord[] = [];
  const startMs = performance.now();
  const alone = { ...workload, seconds: undefined, requests: requests + 1, warmup: 1, cancelRate: 0 };
  for (const { body } of planRequests(prompts, alone, 1)) {
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

/** The objective if none is given: three times what the system does without load. */
export const relativeSlo = ({ ttft, tpot }: { ttft: number; tpot: number }): Slo => ({
  ttft: Math.ceil(3 * ttft),
  ...(Number.isFinite(tpot) && { tpot: Math.ceil(3 * tpot) }),
});

interface SweepOptions {
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

/** Measures attainment at several rates, and searches the highest rate that meets the objective. */
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

/** Measures the given rates, one after the other. */
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
