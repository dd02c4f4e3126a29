/** The gateway put together: workers, journey, readiness, HTTP. */
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { ServingError } from '../lib/process/errors.ts';
import { isLoopback } from '../lib/process/exposure.ts';
import { formatHostPort } from '../lib/process/host-port.ts';
import type { Logger } from '../lib/process/log.ts';
import type { Retrieval } from '../lib/rag/search/retrieval.ts';
import type { Store } from '../lib/rag/store/store.ts';
import type { DecodeClient, IndexerClient, PrefillClient } from '../lib/rpc/contract.ts';
import { choosePromptFormat } from '../lib/text/prompt-format.ts';
import type { Tokenizer } from '../lib/text/tokenizer.ts';
import { Dispatcher } from './admission/dispatcher.ts';
import { InflightRequests } from './admission/inflight.ts';
import { parseTenantWeights } from './admission/settings.ts';
import { Journey } from './completion/journey.ts';
import { RequestRecord } from './completion/request-record.ts';
import type { Tls } from './http/app.ts';
import { completionBody } from './http/completion-body.ts';
import { createServer } from './http/server.ts';
import { Readiness } from './readiness.ts';
import type { GatewayConfig } from './settings.ts';
import { type ApiKeys, NO_KEYS } from './tenants/api-keys.ts';
import { TokenQuota } from './tenants/token-quota.ts';
import { watchAddresses } from './workers/discovery.ts';
import { WorkerPool } from './workers/worker-pool.ts';

export interface GatewayParts {
  /** Name of the model in the API. */
  readonly model: string;
  /** SHA-256 (hex) of the bundle. */
  readonly fingerprint: string;
  /** Of its encoder and projector; undefined where it has none. */
  readonly contextFingerprint: string | undefined;
  /** Elements of one soft token: the model's hidden size. */
  readonly hidden: number;
  readonly tokenizer: Tokenizer;
  /** Of the model's configuration. */
  readonly eosIds: readonly number[];
  /** undefined where there is no store. */
  readonly retrieval: Retrieval | undefined;
  readonly store: Store | undefined;
  /** undefined where none was named: nothing can be indexed then. */
  readonly indexer: IndexerClient | undefined;
  readonly keys: ApiKeys;
  /** Plain HTTP without. */
  readonly tls?: Tls | undefined;
  readonly connectPrefill: (address: string) => PrefillClient;
  readonly connectDecode: (address: string) => DecodeClient;
  /** Aborted when no new requests are to be taken. */
  readonly draining: AbortSignal;
  readonly log: Logger;
}

export interface Gateway {
  /** host:port */
  readonly address: string;
  /** Resolves when a first generation has succeeded; never, if none does. */
  readonly ready: Promise<void>;
  /** Lets running requests finish within the drain timeout, then stops. `draining` must be aborted before. */
  close(): Promise<void>;
}

/** @throws ServingError address_in_use, config_invalid (a prompt format that the tokenizer cannot write). */
export async function startGateway(config: GatewayConfig, parts: GatewayParts): Promise<Gateway> {
  const { model, fingerprint, contextFingerprint, hidden, tokenizer, retrieval, draining, log } = parts;
  const { retrievalBudgetMs, denseBudgetMs, requestTimeoutMs, connectTimeoutMs, maxInflight, bodyLimitBytes } = config;
  const { targetTtftMs, maxReplays, stallTimeoutMs } = config;
  const { connectPrefill, connectDecode } = parts;
  const answerTimeoutMs = Math.min(connectTimeoutMs, stallTimeoutMs);
  const { localPrefill, localPrefillTokens, promptOrder, queueOrder } = config;
  const connecting = { fingerprint, connectPrefill, connectDecode, answerTimeoutMs, stallTimeoutMs, log };
  const pool = new WorkerPool({ ...connecting, localPrefill, localPrefillTokens });
  const weights = parseTenantWeights(config.tenantWeights) ?? new Map();
  const weightOf = (tenant: string) => weights.get(tenant) ?? 1;
  const dispatcher = new Dispatcher({ pool, targetTtftMs, patienceMs: connectTimeoutMs, weightOf, queueOrder });
  const wanted = config.promptFormat === 'auto' ? undefined : config.promptFormat;
  const format = choosePromptFormat(tokenizer, wanted, parts.eosIds);
  const context = { retrieval, retrievalBudgetMs, denseBudgetMs, contextFingerprint, hidden, log };
  const journey = new Journey({
    ...{ tokenizer, format, promptOrder, fingerprint, pool, dispatcher, context, maxReplays, stallTimeoutMs },
  });
  const admission = new InflightRequests({ maxInflight, weightOf, requestTimeoutMs, draining });
  const closing = new AbortController();
  const readiness = new Readiness({
    usable: () => pool.usable,
    generate: () => {
      const prompt = Array(TRIAL_TOKENS).fill(tokenizer.encode('a')[0]);
      return tryOut(journey, prompt, pool.capacity, requestTimeoutMs, closing.signal);
    },
    draining,
    log,
  });
  const capacity = () => (pool.usable ? pool.capacity : undefined);
  const { store, indexer, keys } = parts;
  const { maxUploadBytes, uploadTimeoutMs } = config;
  const bounds = { maxUploadBytes, uploadTimeoutMs, requestTimeoutMs, connectTimeoutMs };
  const repos = { store, indexer, contextFingerprint, ...bounds, admission };
  const { logSamplePercent } = config;
  const serving = { model, fingerprint, journey, admission, readiness, capacity, bodyLimitBytes, keys, repos, log };
  const localOnly = keys === NO_KEYS && isLoopback(config.host);
  const guards = { localOnly, limits: config, tls: parts.tls, quota: new TokenQuota(), logSamplePercent };
  const app = createServer({ ...serving, ...guards });
  const { host, port } = config;
  const discoveries = [
    watchAddresses(config.prefillWorkers, 'prefill', (addresses) => pool.setPrefill(addresses), log),
    watchAddresses(config.decodeWorkers, 'decode', (addresses) => pool.setDecode(addresses), log),
  ];
  // Who comes first is not told that there is no worker for the one reason that none has been asked yet.
  const asked = Promise.all(discoveries.map(({ first }) => first)).then(() => pool.refresh());
  await Promise.race([asked, sleep(FIRST_ANSWERS_MS)]);
  try {
    await app.listen({ host, port });
  } catch (error) {
    for (const discovery of discoveries) discovery.close();
    pool.close();
    throw listenError(error, host, port);
  }
  pool.watch();
  const watching = readiness.watch(closing.signal);
  const { address, port: taken } = app.server.address() as AddressInfo;
  return {
    address: formatHostPort(address, taken),
    ready: readiness.first,
    async close() {
      // The process is killed at the full time: what is cut off must still be told.
      await admission.drain(config.drainTimeoutMs * 0.9);
      closing.abort();
      // Every answer has been written; a client that keeps its connection open must not keep us.
      const linger = setTimeout(() => app.server.closeAllConnections(), config.drainTimeoutMs * 0.05);
      await app.close();
      clearTimeout(linger);
      for (const discovery of discoveries) discovery.close();
      pool.close();
      await watching;
    },
  };
}

/** Before it listens: of workers that are up the answers come within some ms; it need not wait for others. */
const FIRST_ANSWERS_MS = 1_000;
/** Of the prompt that is tried: enough for a prefill worker to learn how fast it computes, which admission goes by. */
const TRIAL_TOKENS = 128;

/** A few tokens, by both kinds of workers. @throws whatever keeps a completion from succeeding. */
async function tryOut(
  journey: Journey,
  ids: readonly number[],
  capacity: number,
  timeoutMs: number,
  closing: AbortSignal,
): Promise<void> {
  const answer = { max_tokens: 3, temperature: 0, ignore_eos: true };
  const request = completionBody.parse({ prompt: ids.slice(0, capacity - answer.max_tokens), ...answer });
  await journey.complete(request, {
    id: 'readiness',
    tenant: 'readiness',
    record: new RequestRecord(),
    signal: AbortSignal.any([AbortSignal.timeout(timeoutMs), closing]),
    deadlineMs: performance.now() + timeoutMs,
    emit: () => {},
  });
}

function listenError(error: unknown, host: string, port: number): ServingError {
  const inUse = (error as NodeJS.ErrnoException).code === 'EADDRINUSE';
  if (inUse) return new ServingError('address_in_use', `${host}:${port} is in use`, { cause: error });
  return new ServingError('config_invalid', `cannot listen on ${host}:${port}: ${(error as Error).message}`, {
    cause: error,
  });
}
