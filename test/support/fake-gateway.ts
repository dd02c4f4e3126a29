/** A gateway on fake workers, composed as the product is, without a port. */
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import { type ComposedGateway, composeGateway, type GatewayParts } from '../../services/gateway/compose.ts';
import { GATEWAY_SETTINGS, type GatewayConfig } from '../../services/gateway/settings.ts';
import { NO_KEYS } from '../../services/gateway/tenants/api-keys.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { loadTokenizer } from '../../services/lib/text/tokenizer.ts';
import { loadConfig } from '../../services/settings.ts';
import { type FakeModel, type FakeWorkers, FINGERPRINT, fakeWorkers } from './fake-workers.ts';
import { keepingLog } from './keeping-log.ts';

export const tokenizer = await loadTokenizer(join(PACKAGE_ROOT, 'models/tiny-coder'));
export const idOf = (name: string) => tokenizer.idOf(name)!;

export interface FakeGateway extends ComposedGateway {
  readonly workers: FakeWorkers;
  readonly draining: AbortController;
  /** Lines that were logged. */
  readonly lines: Record<string, unknown>[];
  /** Body of the answer to a completion. */
  complete(body: object): Promise<Answer>;
  /** Events of a streamed completion, without the final `[DONE]`. */
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
    completion_tokens_details?: { accepted_prediction_tokens: number; rejected_prediction_tokens: number };
  } | null;
  rag?: { mode: string; chunks: object[]; index_version: string | null; degraded?: string };
  error?: { message: string; type: string; param: string | null; code: string };
}

type Given =
  | 'contextFingerprint'
  | 'softPerChunk'
  | 'tokenizer'
  | 'retrieval'
  | 'store'
  | 'indexer'
  | 'keys'
  | 'audit'
  | 'scrapers'
  | 'openModel'
  | 'inspectBundle'
  | 'rolloutStore'
  | 'redis'
  | 'tls';

export const OTHER_PREFILL = '127.0.0.1:11';
export const OTHER_DECODE = '127.0.0.1:12';

/** Settings, and parts that the process would open. */
export interface FakeGatewayOptions extends Partial<Omit<GatewayConfig, Given>>, Partial<Pick<GatewayParts, Given>> {
  /** Addresses of workers besides the first ones. */
  readonly morePrefill?: readonly string[];
  readonly moreDecode?: readonly string[];
  /** Workers of another bundle, at {@link OTHER_PREFILL} and {@link OTHER_DECODE}. */
  readonly otherWorkers?: FakeWorkers;
  /** Workers of another gateway, which both use then. */
  readonly sameWorkers?: FakeWorkers;
}

/**
 * Nothing is late or held back, nothing is replayed, and no request waits for a worker, unless the test is about it.
 * The gateway answers to any host name.
 */
const TEST_SETTINGS: Partial<GatewayConfig> = {
  host: '0.0.0.0',
  maxInflight: 8,
  bodyLimitBytes: 64 * 1024,
  maxConnections: 100,
  refusalsPerSecond: 1_000_000,
  uploadTimeoutMs: 60_000,
  maxUploadBytes: 1024 * 1024,
  retrievalBudgetMs: 60_000,
  targetTtftMs: 60_000,
  stallTimeoutMs: 60_000,
  connectTimeoutMs: 1,
  maxReplays: 0,
};

export async function fakeGateway(model: FakeModel, options: FakeGatewayOptions = {}): Promise<FakeGateway> {
  const {
    retrieval,
    store,
    indexer,
    keys = NO_KEYS,
    audit,
    scrapers,
    redis,
    tls,
    softPerChunk = 1,
    ...others
  } = options;
  const { openModel, inspectBundle, rolloutStore, ...rest } = others;
  const { morePrefill = [], moreDecode = [], sameWorkers, otherWorkers, ...settings } = rest;
  const workers = sameWorkers ?? fakeWorkers(model);
  const lines: Record<string, unknown>[] = [];
  const draining = new AbortController();
  const needed = { model: 'unused', prefillWorkers: workers.prefill.address, decodeWorkers: workers.decode.address };
  const config = { ...loadConfig(GATEWAY_SETTINGS, needed, {}), ...TEST_SETTINGS, ...settings };
  const gateway = composeGateway(config, {
    modelName: 'tiny',
    fingerprint: FINGERPRINT,
    contextFingerprint: 'contextFingerprint' in options ? options.contextFingerprint : 'context',
    hidden: 2,
    softPerChunk,
    tokenizer: options.tokenizer ?? tokenizer,
    eosIds: [],
    retrieval,
    store,
    indexer,
    keys,
    audit,
    scrapers,
    redis,
    tls,
    ...(openModel && { openModel }),
    ...(inspectBundle && { inspectBundle }),
    ...(rolloutStore && { rolloutStore }),
    connectPrefill: (at) => {
      if (at === OTHER_PREFILL && otherWorkers) return otherWorkers.prefillAt(at);
      return at === workers.prefill.address ? workers.prefill.client : workers.prefillAt(at);
    },
    connectDecode: (at) => {
      if (at === OTHER_DECODE && otherWorkers) return otherWorkers.decodeAt(at);
      return at === workers.decode.address ? workers.decode.client : workers.decodeAt(at);
    },
    draining: draining.signal,
    log: keepingLog(lines),
  });
  const { app, pool, workersListed } = gateway;
  workersListed('prefill', [...config.prefillWorkers, ...morePrefill]);
  workersListed('decode', [...config.decodeWorkers, ...moreDecode]);
  await pool.refresh();
  const post = (payload: object) => app.inject({ method: 'POST', url: '/v1/completions', payload });
  return {
    ...gateway,
    workers,
    draining,
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

/** Ids that spell a text, one per position; the end of text after it. */
export function spelling(text: string): FakeModel['token'] {
  const ids = tokenizer.encode(text);
  return (position) => ids[position] ?? idOf('<|endoftext|>');
}

/** A gateway that listens on a free port of this machine; it is closed, with its connections, when the test ends. */
export async function listeningGateway(model: FakeModel, options: FakeGatewayOptions = {}) {
  const gateway = await fakeGateway(model, options);
  await gateway.app.listen({ host: '127.0.0.1', port: 0 });
  onTestFinished(() => {
    gateway.app.server.closeAllConnections();
    return gateway.app.close();
  });
  return { ...gateway, port: (gateway.app.server.address() as AddressInfo).port };
}
