/**
 * What serves requests by one bundle, put together: its workers, its queue, its context, the journey through them, and
 * whether all that works. A gateway has one arm, and a second one while a rollout is under way; what belongs to clients
 * (keys, limits, requests in flight) is not in it.
 */
import { repeatUntilAborted } from '../lib/async/repeat.ts';
import type { Logger } from '../lib/process/log.ts';
import { metrics } from '../lib/process/metrics.ts';
import type { Retrieval } from '../lib/rag/search/retrieval.ts';
import { RedisChannel } from '../lib/redis/channel.ts';
import type { RedisConnection } from '../lib/redis/connection.ts';
import type { WorkerRole } from '../lib/redis/worker-registry.ts';
import type { IndexerClient } from '../lib/rpc/contract.ts';
import { choosePromptFormat, type PromptFormat } from '../lib/text/prompt-format.ts';
import type { Tokenizer } from '../lib/text/tokenizer.ts';
import { Dispatcher } from './admission/dispatcher.ts';
import type { InflightRequests, SessionStart } from './admission/inflight.ts';
import { QualityLadder } from './admission/quality-ladder.ts';
import { NEWS_EVERY_MS, ServiceExchange } from './admission/service-exchange.ts';
import { Journey } from './completion/journey.ts';
import { countFromZero } from './completion/request-record.ts';
import { ContextFinder } from './context/context.ts';
import { Overlays } from './context/overlay.ts';
import { Sessions } from './context/sessions.ts';
import { Readiness, tryOut } from './readiness.ts';
import type { ArmName } from './rollout/rollout.ts';
import type { GatewayConfig } from './settings.ts';
import type { WorkerFigures } from './workers/desired-workers.ts';
import { WorkerPool, type WorkerPoolOptions } from './workers/worker-pool.ts';

/** A bundle as a gateway serves it. */
export interface ServedModel {
  /** SHA-256 (hex) of the bundle. */
  readonly fingerprint: string;
  /** Fingerprint of the bundle's encoder and projector; undefined where it has none. */
  readonly contextFingerprint: string | undefined;
  /** Elements of one soft token: the model's hidden size. */
  readonly hidden: number;
  /** Soft tokens of one chunk; 1 if not given. */
  readonly softPerChunk?: number;
  readonly tokenizer: Tokenizer;
  /** End-of-text ids of the model's configuration. */
  readonly eosIds: readonly number[];
  /** undefined where there is no store. */
  readonly retrieval: Retrieval | undefined;
  /** undefined where none was named: what is not indexed cannot be encoded then. */
  readonly indexer: IndexerClient | undefined;
}

export interface ArmParts {
  readonly name: ArmName;
  readonly config: GatewayConfig;
  readonly model: ServedModel;
  readonly connectPrefill: WorkerPoolOptions['connectPrefill'];
  readonly connectDecode: WorkerPoolOptions['connectDecode'];
  readonly weightOf: (tenant: string) => number;
  readonly inflight: Pick<InflightRequests, 'track' | 'superseded'>;
  readonly redis: RedisConnection | undefined;
  readonly draining: AbortSignal;
  /** Ends a trial that runs, and the exchange with other gateways. */
  readonly closing: AbortSignal;
  readonly log: Logger;
}

export interface ComposedArm {
  readonly pool: WorkerPool;
  readonly journey: Journey;
  readonly readiness: Readiness;
  readonly format: PromptFormat;
  /** Tells other gateways that a session goes on here: at most one of them has it. */
  readonly announce: ((started: SessionStart) => Promise<boolean>) | undefined;
  /** What the number of workers that the load needs goes by, as it stands. */
  readonly figures: () => WorkerFigures;
  /** What waits here for workers: prompts, and their tokens. */
  readonly waiting: Dispatcher['waiting'];
  /** Gateways that serve the bundle and hear each other, this one included. */
  readonly gateways: number;
  /** Takes the addresses of the workers of a role; those of other bundles are not used. */
  workersListed(role: WorkerRole, listed: readonly string[], lapsed?: readonly string[]): void;
}

/** @throws ServingError config_invalid for a prompt format that the tokenizer cannot write. */
export function composeArm(parts: ArmParts): ComposedArm {
  const { name, config, model, draining, closing, inflight, log } = parts;
  const { fingerprint, tokenizer } = model;
  const { connectPrefill, connectDecode } = parts;
  const sequencesElsewhere = (address: string) => exchange?.sequencesElsewhere(address) ?? 0;
  const isMeasured = name === 'stable';
  countFromZero(name);
  const connect = { connectPrefill, connectDecode };
  const pool = new WorkerPool({ ...config, fingerprint, ...connect, sequencesElsewhere, isMeasured, log });
  const promptFormat = config.promptFormat === 'auto' ? undefined : config.promptFormat;
  const format = choosePromptFormat(tokenizer, promptFormat, model.eosIds);
  const { dispatcher, exchange, sessions, announce, gateways } = composeAdmission(parts, pool);
  const journey = new Journey({
    ...config,
    tokenizer,
    format,
    fingerprint,
    pool,
    dispatcher,
    context: new ContextFinder({ ...config, ...model, log, overlays: new Overlays({ ...config, ...model, log }) }),
    sessions,
    // Without a projector there are no soft tokens to step down to.
    ladder:
      config.qualityLadder && model.contextFingerprint !== undefined
        ? new QualityLadder({ ...config, waitMs: (tenant, priority) => dispatcher.waitMs(tenant, priority) })
        : undefined,
    isBusy: () => draining.aborted || dispatcher.waitingTenants.size > 0,
    track: () => inflight.track(),
  });
  const generate = () =>
    tryOut({
      journey,
      tokenId: tokenizer.encode('a')[0]!,
      capacity: pool.capacity,
      timeoutMs: config.requestTimeoutMs,
      closing,
    });
  const readiness = new Readiness({ usable: () => pool.usable, generate, draining, log });
  const workersListed: ComposedArm['workersListed'] = (role, listed, lapsed) =>
    role === 'prefill' ? pool.setPrefill(listed, lapsed) : pool.setDecode(listed, lapsed);
  const figures = () => ({
    ...pool.perWorker,
    sequences: pool.slots.busy + dispatcher.waiting.prompts,
    waitingTokens: pool.prefillBacklog + dispatcher.waiting.tokens,
  });
  return {
    pool,
    journey,
    readiness,
    format,
    announce,
    figures,
    workersListed,
    get waiting() {
      return dispatcher.waiting;
    },
    get gateways() {
      return gateways();
    },
  };
}

/**
 * Gateways that serve the same bundle hear each other. The bundle that a gateway was started with keeps the name that
 * it had before there were rollouts: there gateways also hear of sessions that went on elsewhere.
 */
const channelOf = ({ name, model }: ArmParts) =>
  name === 'stable' ? 'llavacode:1:gateways' : `llavacode:1:gateways:${model.fingerprint.slice(0, 16)}`;

/** The parts that know of other gateways, where there is a Redis over which these can be heard. */
function composeAdmission(parts: ArmParts, pool: WorkerPool) {
  const { config, redis, weightOf, closing, inflight, name } = parts;
  if (redis === undefined) {
    const dispatcher = new Dispatcher({ ...config, pool, weightOf });
    return { dispatcher, exchange: undefined, sessions: new Sessions(), announce: undefined, gateways: () => 1 };
  }
  const channel = new RedisChannel({
    redis,
    name: channelOf(parts),
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
  void repeatUntilAborted(closing, () => {
    exchange.tick();
    // Slots that another gateway has freed are seen when the workers are asked.
    if (dispatcher.contends) pool.refreshSoon();
    if (name === 'stable') metrics.gatewaysAlive.set(channel.alive);
    return NEWS_EVERY_MS;
  });
  closing.addEventListener('abort', () => channel.close(), { once: true });
  const announce = (started: SessionStart) => channel.publish('session', started);
  return { dispatcher, exchange, sessions, announce, gateways: () => Math.max(1, channel.alive) };
}
