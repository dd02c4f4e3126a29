/**
 * The gateway put together: workers, journey, readiness and the HTTP app. Nothing listens or looks for workers yet, so
 * that tests put it together the same way.
 */
import { repeatUntilAborted } from '../lib/async/repeat.ts';
import type { CostModel } from '../lib/numeric/cost-model.ts';
import { isLoopback } from '../lib/process/exposure.ts';
import type { Logger } from '../lib/process/log.ts';
import { metrics } from '../lib/process/metrics.ts';
import type { SystemSecret } from '../lib/process/system-secret.ts';
import type { Retrieval } from '../lib/rag/search/retrieval.ts';
import type { Store } from '../lib/rag/store/store.ts';
import { RedisChannel } from '../lib/redis/channel.ts';
import type { RedisConnection } from '../lib/redis/connection.ts';
import type { DecodeClient, IndexerClient, PrefillClient } from '../lib/rpc/contract.ts';
import { choosePromptFormat } from '../lib/text/prompt-format.ts';
import type { Tokenizer } from '../lib/text/tokenizer.ts';
import { Dispatcher } from './admission/dispatcher.ts';
import { InflightRequests, type SessionStart } from './admission/inflight.ts';
import { NEWS_EVERY_MS, ServiceExchange } from './admission/service-exchange.ts';
import { parseTenantWeights } from './admission/settings.ts';
import { Acceptance } from './completion/acceptance.ts';
import { Journey } from './completion/journey.ts';
import { ContextFinder } from './context/context.ts';
import { Overlays } from './context/overlay.ts';
import { RecentPrompts } from './context/recent-prompts.ts';
import { Remotes } from './context/remotes.ts';
import { Sessions } from './context/sessions.ts';
import type { Scrapers } from './http/scrapers.ts';
import { createServer } from './http/server.ts';
import type { Tls } from './http/tls.ts';
import { Readiness, tryOut } from './readiness.ts';
import type { GatewayConfig } from './settings.ts';
import { type ApiKeys, NO_KEYS } from './tenants/api-keys.ts';
import { TenantLedger } from './tenants/tenant-ledger.ts';
import { LEASE_MS, TenantQuota } from './tenants/tenant-quota.ts';
import { DesiredWorkers, type WorkerFigures } from './workers/desired-workers.ts';
import { WorkerPool } from './workers/worker-pool.ts';

export interface GatewayParts {
  /** Name of the model in the API. */
  readonly modelName: string;
  /** SHA-256 (hex) of the bundle. */
  readonly fingerprint: string;
  /** Fingerprint of the bundle's encoder and projector; undefined where it has none. */
  readonly contextFingerprint: string | undefined;
  /** Elements of one soft token: the model's hidden size. */
  readonly hidden: number;
  readonly tokenizer: Tokenizer;
  /** End-of-text ids of the model's configuration. */
  readonly eosIds: readonly number[];
  /** undefined where there is no store. */
  readonly retrieval: Retrieval | undefined;
  readonly store: Store | undefined;
  /** undefined where none was named: nothing can be indexed then. */
  readonly indexer: IndexerClient | undefined;
  readonly keys: ApiKeys;
  /** Rates of workers that `llavacode plan` has measured; undefined where there is no file of them. */
  readonly rates?: CostModel | undefined;
  /** Who may read /metrics; undefined leaves that to the keys. */
  readonly scrapers?: Scrapers | undefined;
  /**
   * Connection over which gateways share the limits of tenants, fairness between them, and sessions; undefined where
   * the store is not Redis. It is the gateway's own to close.
   */
  readonly redis?: RedisConnection | undefined;
  /** undefined for plain HTTP. */
  readonly tls?: Tls | undefined;
  /** The secret that all services of the system share; undefined where there is none. */
  readonly secret?: SystemSecret | undefined;
  readonly connectPrefill: (address: string) => PrefillClient;
  readonly connectDecode: (address: string) => DecodeClient;
  /** Aborted when no new requests are to be taken. */
  readonly draining: AbortSignal;
  readonly log: Logger;
}

export interface ComposedGateway {
  readonly app: ReturnType<typeof createServer>;
  readonly pool: WorkerPool;
  readonly journey: Journey;
  readonly inflight: InflightRequests;
  readonly readiness: Readiness;
  /** Must be aborted when the gateway stops: it ends a trial that runs. */
  readonly closing: AbortController;
}

/** @throws ServingError config_invalid for a prompt format that the tokenizer cannot write. */
export function composeGateway(config: GatewayConfig, parts: GatewayParts): ComposedGateway {
  const { fingerprint, tokenizer, draining, log } = parts;
  const { connectPrefill, connectDecode } = parts;
  const sequencesElsewhere = (address: string) => exchange?.sequencesElsewhere(address) ?? 0;
  const connect = { connectPrefill, connectDecode };
  const pool: WorkerPool = new WorkerPool({ ...config, fingerprint, ...connect, sequencesElsewhere, log });
  const weights = parseTenantWeights(config.tenantWeights);
  const weightOf = (tenant: string) => weights?.get(tenant) ?? 1;
  const promptFormat = config.promptFormat === 'auto' ? undefined : config.promptFormat;
  const format = choosePromptFormat(tokenizer, promptFormat, parts.eosIds);
  const closing = new AbortController();
  const desired = new DesiredWorkers(parts.rates);
  const shared = composeShared(config, parts, pool, weightOf, closing.signal);
  const { dispatcher, exchange, sessions, inflight, quota } = shared;
  const journey = new Journey({
    ...config,
    tokenizer,
    format,
    fingerprint,
    pool,
    dispatcher,
    context: new ContextFinder({ ...config, ...parts, overlays: new Overlays({ ...config, ...parts }) }),
    sessions,
    isBusy: () => draining.aborted || dispatcher.waitingTenants.size > 0,
    track: () => inflight.track(),
  });
  const readiness = new Readiness({
    usable: () => pool.usable,
    generate: () =>
      tryOut({
        journey,
        tokenId: tokenizer.encode('a')[0]!,
        capacity: pool.capacity,
        timeoutMs: config.requestTimeoutMs,
        closing: closing.signal,
      }),
    draining,
    log,
  });
  const app = createServer({
    ...config,
    ...parts,
    journey,
    inflight,
    readiness,
    capacity: () => (pool.usable ? pool.capacity : undefined),
    slots: () => pool.slots,
    devices: () => pool.devices,
    acceptance: new Acceptance(),
    format,
    quota,
    recent: new RecentPrompts(),
    remotes: new Remotes(parts.store, config.retrievalBudgetMs),
    tls: parts.tls,
    load: desired,
    beforeScrape: () => desired.publish(figuresOf(pool, dispatcher)),
    localOnly: parts.keys === NO_KEYS && isLoopback(config.host),
  });
  return { app, pool, journey, inflight, readiness, closing };
}

/** What the number of workers that the load needs goes by, as it stands. */
function figuresOf(pool: WorkerPool, { waiting }: Dispatcher): WorkerFigures {
  return {
    ...pool.perWorker,
    sequences: pool.slots.busy + waiting.prompts,
    waitingTokens: pool.prefillBacklog + waiting.tokens,
  };
}

/** The parts that know of other gateways, where there is a Redis over which these can be heard. */
function composeShared(
  config: GatewayConfig,
  { redis, draining, log }: GatewayParts,
  pool: WorkerPool,
  weightOf: (tenant: string) => number,
  closing: AbortSignal,
) {
  const capacity = () => pool.capacity;
  if (redis === undefined) {
    return {
      dispatcher: new Dispatcher({ ...config, pool, weightOf }),
      exchange: undefined,
      sessions: new Sessions(),
      inflight: new InflightRequests({ ...config, weightOf, draining }),
      quota: new TenantQuota({ capacity, log }),
    };
  }
  const channel = new RedisChannel({
    redis,
    name: 'llavacode:1:gateways',
    onMessage: ({ from, kind, body }) => {
      if (kind === 'session') inflight.superseded(body);
      else if (from === channel.self) return;
      else if (kind === 'prompt') sessions.servedElsewhere(body);
      else if (kind === 'service') {
        exchange.heard(from, body);
        if (dispatcher.isBlocked) pool.refreshSoon(); // a slot may have come free
      }
    },
  });
  const exchange: ServiceExchange = new ServiceExchange({
    weightOf,
    publish: (news) => void channel.publish('service', news),
    charge: (costs) => dispatcher.charge(costs),
    waiting: () => dispatcher.waitingTenants,
    slots: () => dispatcher.slotNews,
    after: (ms, task) => void setTimeout(task, ms).unref(),
    self: channel.self,
  });
  const dispatcher: Dispatcher = new Dispatcher({ ...config, pool, weightOf, exchange });
  const sessions = new Sessions(undefined, (served) => void channel.publish('prompt', served));
  const announce = (started: SessionStart) => channel.publish('session', started);
  const inflight: InflightRequests = new InflightRequests({ ...config, weightOf, announce, draining });
  const ledger = new TenantLedger(redis, LEASE_MS);
  void repeatUntilAborted(closing, () => {
    exchange.tick();
    // Slots that another gateway has freed are seen when the workers are asked.
    if (dispatcher.contends) pool.refreshSoon();
    metrics.gatewaysAlive.set(channel.alive);
    return NEWS_EVERY_MS;
  });
  closing.addEventListener('abort', () => channel.close(), { once: true });
  return { dispatcher, exchange, sessions, inflight, quota: new TenantQuota({ ledger, capacity, log }) };
}
