/** A gateway on fake workers, without a port. */
import { join } from 'node:path';
import type { FastifyInstance } from 'fastify';
import { Dispatcher } from '../../services/gateway/admission/dispatcher.ts';
import { InflightRequests } from '../../services/gateway/admission/inflight.ts';
import { Journey } from '../../services/gateway/completion/journey.ts';
import type { Tls } from '../../services/gateway/http/app.ts';
import type { HttpLimits } from '../../services/gateway/http/limits.ts';
import type { RepoParts } from '../../services/gateway/http/repos.ts';
import { createServer } from '../../services/gateway/http/server.ts';
import { type ApiKeys, NO_KEYS } from '../../services/gateway/tenants/api-keys.ts';
import { TokenQuota } from '../../services/gateway/tenants/token-quota.ts';
import { WorkerPool } from '../../services/gateway/workers/worker-pool.ts';
import type { Logger } from '../../services/lib/process/log.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import type { Retrieval } from '../../services/lib/rag/search/retrieval.ts';
import { choosePromptFormat } from '../../services/lib/text/prompt-format.ts';
import { loadTokenizer } from '../../services/lib/text/tokenizer.ts';
import { type FakeModel, type FakeWorkers, FINGERPRINT, fakeWorkers } from './fake-workers.ts';

export const tokenizer = await loadTokenizer(join(PACKAGE_ROOT, 'models/tiny-coder'));
export const idOf = (name: string) => tokenizer.idOf(name)!;

export interface FakeGateway {
  readonly app: FastifyInstance;
  readonly workers: FakeWorkers;
  readonly pool: WorkerPool;
  readonly journey: Journey;
  readonly draining: AbortController;
  readonly admission: InflightRequests;
  /** Lines that were logged. */
  readonly lines: Record<string, unknown>[];
  /** Body of the answer to a completion. */
  complete(body: object): Promise<Answer>;
  /** Events of a streamed completion, `[DONE]` left out. */
  stream(body: object): Promise<Answer[]>;
}

/** Loosely typed: tests say what they expect. */
export interface Answer {
  status: number;
  headers: Record<string, unknown>;
  id: string;
  object: string;
  model: string;
  choices: {
    index: number;
    text: string;
    finish_reason: string | null;
    token_ids?: number[];
    prompt_token_ids?: number[];
    logprobs: null | {
      tokens: string[];
      token_logprobs: (number | null)[];
      top_logprobs: (Record<string, number> | null)[];
      text_offset: number[];
    };
  }[];
  usage: {
    prompt_tokens: number;
    completion_tokens: number;
    total_tokens: number;
    prompt_tokens_details: { cached_tokens: number; soft_tokens: number };
  } | null;
  rag?: { mode: string; chunks: object[]; index_version: string | null; degraded?: string };
  error?: { message: string; type: string; param: string | null; code: string };
}

export interface FakeGatewayOptions {
  readonly retrieval?: Retrieval;
  readonly maxInflight?: number;
  readonly requestTimeoutMs?: number;
  readonly retrievalBudgetMs?: number;
  readonly denseBudgetMs?: number;
  readonly targetTtftMs?: number;
  /** Addresses of workers besides the first ones. */
  readonly morePrefill?: readonly string[];
  readonly moreDecode?: readonly string[];
  /** None, unless the test is about them. */
  readonly maxReplays?: number;
  readonly stallTimeoutMs?: number;
  readonly patienceMs?: number;
  readonly keys?: ApiKeys;
  readonly localOnly?: boolean;
  readonly limits?: Partial<HttpLimits>;
  readonly tls?: Tls;
  readonly logSamplePercent?: number;
  readonly repos?: Partial<RepoParts>;
}

export async function fakeGateway(model: FakeModel, options: FakeGatewayOptions = {}): Promise<FakeGateway> {
  const workers = fakeWorkers(model);
  const lines: Record<string, unknown>[] = [];
  const log = keepingLog(lines);
  const draining = new AbortController();
  const pool = new WorkerPool({
    fingerprint: FINGERPRINT,
    connectPrefill: (at) => (at === workers.prefill.address ? workers.prefill.client : workers.prefillAt(at)),
    connectDecode: (at) => (at === workers.decode.address ? workers.decode.client : workers.decodeAt(at)),
    answerTimeoutMs: Math.min(1000, options.stallTimeoutMs ?? Infinity),
    stallTimeoutMs: options.stallTimeoutMs ?? 60_000,
    log,
  });
  pool.setPrefill([workers.prefill.address, ...(options.morePrefill ?? [])]);
  pool.setDecode([workers.decode.address, ...(options.moreDecode ?? [])]);
  await pool.refresh();
  const { retrieval, retrievalBudgetMs = 60_000, denseBudgetMs = retrievalBudgetMs, targetTtftMs = 60_000 } = options;
  const { maxReplays = 0, stallTimeoutMs = 60_000, patienceMs = 0 } = options;
  const context = { retrieval, retrievalBudgetMs, denseBudgetMs, contextFingerprint: 'context', hidden: 2, log };
  const journey = new Journey({
    tokenizer,
    format: choosePromptFormat(tokenizer),
    fingerprint: FINGERPRINT,
    pool,
    dispatcher: new Dispatcher({ pool, targetTtftMs, patienceMs }),
    maxReplays,
    stallTimeoutMs,
    context,
  });
  const { maxInflight = 8, requestTimeoutMs = 60_000 } = options;
  const admission = new InflightRequests({ maxInflight, requestTimeoutMs, draining: draining.signal });
  const app = createServer({
    model: 'tiny',
    fingerprint: FINGERPRINT,
    journey,
    admission,
    readiness: { problem: undefined },
    capacity: () => (pool.usable ? pool.capacity : undefined),
    bodyLimitBytes: 64 * 1024,
    limits: {
      maxConnections: 100,
      receiveTimeoutMs: 10_000,
      uploadTimeoutMs: 60_000,
      ...options.limits,
    },
    tls: options.tls,
    keys: options.keys ?? NO_KEYS,
    quota: new TokenQuota(),
    localOnly: options.localOnly ?? false,
    logSamplePercent: options.logSamplePercent ?? 0,
    repos: {
      store: undefined,
      indexer: undefined,
      contextFingerprint: 'context',
      maxUploadBytes: 1024 * 1024,
      uploadTimeoutMs: 60_000,
      requestTimeoutMs,
      connectTimeoutMs: 10_000,
      admission,
      ...options.repos,
    },
    log,
  });
  const post = (payload: object) => app.inject({ method: 'POST', url: '/v1/completions', payload });
  return {
    app,
    workers,
    pool,
    journey,
    draining,
    admission,
    lines,
    async complete(body) {
      const { statusCode: status, headers, payload } = await post(body);
      return { ...JSON.parse(payload), status, headers };
    },
    async stream(body) {
      const { payload } = await post({ ...body, stream: true });
      const events = payload.split('\n\n').filter((event) => event !== '');
      if (events.pop() !== 'data: [DONE]') throw new Error(`no [DONE] at the end of ${payload}`);
      return events.map((event) => JSON.parse(event.slice('data: '.length)));
    },
  };
}

/** A logger that keeps its lines. */
export function keepingLog(lines: Record<string, unknown>[], bindings: object = {}): Logger {
  const keep =
    (level: string) =>
    (fields: object | string, message = '') => {
      const line = typeof fields === 'string' ? { message: fields } : { ...fields, message };
      lines.push({ level, ...bindings, ...line });
    };
  const levels = Object.fromEntries(
    ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'].map((level) => [level, keep(level)]),
  );
  const child = (more: object) => keepingLog(lines, { ...bindings, ...more });
  return { ...levels, level: 'info', child } as unknown as Logger;
}

/** Ids that spell a text, one per position; the end of text after it. */
export function spelling(text: string): FakeModel['token'] {
  const ids = tokenizer.encode(text);
  return (position) => ids[position] ?? idOf('<|endoftext|>');
}
