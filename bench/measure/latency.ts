/**
 * Figures computed from raw timestamps, with their definitions: pure functions over records, so that every figure can
 * be computed again from an artifact. The definitions are those of vLLM's `bench serve` except for two, both against
 * us: time counts from the *intended* send time, and errors count against the share of requests that met the objective.
 */
import { ServingError } from '../../services/lib/process/errors.ts';
import { quantile } from './statistics.ts';

export const DEFINITIONS = {
  ttft: 'ms from the intended send time to the first chunk that holds a choice',
  tpot: 'ms: (last chunk - first chunk) / (output tokens - 1); requests of one output token have none',
  itl: 'ms between two chunks of one request, pooled over all requests',
  e2e: 'ms from the intended send time to the last chunk',
  attainment:
    'requests that met every objective / (all requests - those that the plan cancelled); a failed request has missed it',
  goodput: 'requests that met every objective / duration, per second',
  duration: 's from the first intended send time to the end of the last request, without the warm-up',
  throughput: 'output tokens of finished requests / duration, per second',
  sendLag:
    'ms from the intended to the actual send time; p99 above 50 ms makes a run degraded: the client was too slow',
  interval:
    'the range between two order statistics that holds the true median with the stated probability, whatever the distribution',
} as const;

/** One request as its client saw it. All times are in ms from the start of the run. */
export interface ClientRecord {
  readonly index: number;
  readonly intendedMs: number;
  readonly sentMs: number;
  /** Times at which a chunk that held a choice arrived. */
  readonly chunksMs: readonly number[];
  readonly endedMs: number;
  readonly promptTokens: number;
  readonly softTokens: number;
  readonly cachedTokens: number;
  readonly outputTokens: number;
  /** `cancelled` means: the plan made the client hang up. */
  readonly outcome: 'ok' | 'cancelled' | 'failed';
  /** The server's error code, if the request failed. */
  readonly code?: string;
}

export const ttft = (record: ClientRecord) => record.chunksMs[0]! - record.intendedMs;
export const e2e = (record: ClientRecord) => record.chunksMs.at(-1)! - record.intendedMs;

export function tpot({ chunksMs, outputTokens }: ClientRecord): number | undefined {
  return outputTokens < 2 ? undefined : (chunksMs.at(-1)! - chunksMs[0]!) / (outputTokens - 1);
}

const gaps = ({ chunksMs }: ClientRecord) => chunksMs.slice(1).map((at, i) => at - chunksMs[i]!);

/** A service level objective: upper bounds in ms. */
export interface Slo {
  readonly ttft?: number;
  readonly tpot?: number;
  readonly e2e?: number;
}
const SLO_KEYS = ['ttft', 'tpot', 'e2e'] as const;

/**
 * Reads an objective like `ttft:500,tpot:50`.
 * @throws ServingError invalid_request.
 */
export function parseSlo(text: string): Slo {
  const bounds = text.split(',').map((part) => {
    const [key, value] = part.trim().split(':');
    const ms = Number(value);
    if (!SLO_KEYS.some((known) => known === key) || !(ms > 0)) {
      throw new ServingError(
        'invalid_request',
        `${JSON.stringify(part)} is not a bound of an objective: it must be ttft:MS, tpot:MS or e2e:MS, separated by commas`,
      );
    }
    return [key, ms] as const;
  });
  return Object.fromEntries(bounds);
}

export const formatSlo = (slo: Slo) =>
  SLO_KEYS.flatMap((key) => (slo[key] === undefined ? [] : [`${key.toUpperCase()} ≤ ${Math.round(slo[key])} ms`])).join(
    ', ',
  );

export function meets(record: ClientRecord, slo: Slo): boolean {
  if (record.outcome !== 'ok' || record.chunksMs.length === 0) return false;
  const within = (value: number, bound: number | undefined) => bound === undefined || value <= bound;
  return within(ttft(record), slo.ttft) && within(tpot(record) ?? 0, slo.tpot) && within(e2e(record), slo.e2e);
}

export interface Percentiles {
  readonly p50: number;
  readonly p90: number;
  readonly p99: number;
}
export const percentiles = (samples: readonly number[]): Percentiles => ({
  p50: quantile(samples, 0.5),
  p90: quantile(samples, 0.9),
  p99: quantile(samples, 0.99),
});

/** Above this p99 the run measures the client and not the server. */
const SEND_LAG_LIMIT_MS = 50;

export interface LoadSummary {
  readonly requests: number;
  readonly ok: number;
  readonly failed: number;
  readonly cancelled: number;
  /** Number of failures by error code. */
  readonly errors: Readonly<Record<string, number>>;
  readonly seconds: number;
  /** Requests finished per second. */
  readonly requestRate: number;
  /** Output tokens per second. */
  readonly throughput: number;
  readonly ttft: Percentiles;
  readonly tpot: Percentiles;
  readonly itl: Percentiles;
  readonly e2e: Percentiles;
  readonly sendLag: Percentiles;
  readonly degraded: boolean;
  /** Undefined without an objective, as is `goodput`. */
  readonly attainment?: number;
  readonly goodput?: number;
}

/** @param options.warmup number of the first requests, by intended time, that do not count. */
export function summarise(all: readonly ClientRecord[], options: { warmup: number; slo?: Slo }): LoadSummary {
  const records = all.toSorted((a, b) => a.intendedMs - b.intendedMs).slice(options.warmup);
  const ok = records.filter(({ outcome, chunksMs }) => outcome === 'ok' && chunksMs.length > 0);
  const cancelled = records.filter(({ outcome }) => outcome === 'cancelled').length;
  const errors: Record<string, number> = {};
  for (const { code, outcome } of records) {
    if (outcome === 'failed') errors[code ?? 'unknown'] = (errors[code ?? 'unknown'] ?? 0) + 1;
  }
  const start = records[0]?.intendedMs ?? 0;
  const seconds = records.reduce((end, { endedMs }) => Math.max(end, endedMs - start), 0) / 1000;
  const sendLag = percentiles(records.map(({ sentMs, intendedMs }) => sentMs - intendedMs));
  const met = options.slo && records.filter((record) => meets(record, options.slo!)).length;
  return {
    requests: records.length,
    ok: ok.length,
    failed: records.length - ok.length - cancelled,
    cancelled,
    errors,
    seconds,
    requestRate: ok.length / seconds,
    throughput: ok.reduce((sum, { outputTokens }) => sum + outputTokens, 0) / seconds,
    ttft: percentiles(ok.map(ttft)),
    tpot: percentiles(ok.flatMap((record) => tpot(record) ?? [])),
    itl: percentiles(ok.flatMap(gaps)),
    e2e: percentiles(ok.map(e2e)),
    sendLag,
    degraded: sendLag.p99 > SEND_LAG_LIMIT_MS,
    ...(met !== undefined && { attainment: met / (records.length - cancelled), goodput: met / seconds }),
  };
}
