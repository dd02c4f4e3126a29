/**
 * The gateway put together: the arms that serve by one bundle each (arm.ts), what belongs to clients, and the HTTP app.
 * Nothing listens or looks for workers yet, so that tests put it together the same way.
 */
import type { CostModel } from '../lib/numeric/cost-model.ts';
import { type AuditLog, NO_AUDIT } from '../lib/process/audit-log.ts';
import type { Tls } from '../lib/process/certificate.ts';
import { isLoopback } from '../lib/process/exposure.ts';
import type { Logger } from '../lib/process/log.ts';
import type { SystemSecret } from '../lib/process/system-secret.ts';
import type { Store } from '../lib/rag/store/store.ts';
import type { RedisConnection } from '../lib/redis/connection.ts';
import { InflightRequests, type SessionStart } from './admission/inflight.ts';
import { parseTenantWeights } from './admission/settings.ts';
import { type ComposedArm, composeArm, type ServedModel } from './arm.ts';
import { type CandidateModel, Candidates } from './candidates.ts';
import { Acceptance } from './completion/acceptance.ts';
import { FlightRecorder } from './completion/flight-recorder.ts';
import type { Journey } from './completion/journey.ts';
import { RecentPrompts } from './context/recent-prompts.ts';
import { Remotes } from './context/remotes.ts';
import type { WatchedGateway } from './http/admin-live.ts';
import type { PageFiles } from './http/admin-page.ts';
import type { Scrapers } from './http/scrapers.ts';
import { createServer } from './http/server.ts';

import type { Readiness } from './readiness.ts';
import { Rollout } from './rollout/rollout.ts';
import type { RolloutState } from './rollout/state.ts';
import { inMemory, type StateStore } from './rollout/state-store.ts';
import type { GatewayConfig } from './settings.ts';
import { type ApiKeys, NO_KEYS } from './tenants/api-keys.ts';
import { TenantLedger } from './tenants/tenant-ledger.ts';
import { LEASE_MS, TenantQuota } from './tenants/tenant-quota.ts';
import { DesiredWorkers } from './workers/desired-workers.ts';
import type { WorkerPool, WorkerPoolOptions } from './workers/worker-pool.ts';

export interface GatewayParts extends ServedModel {
  /** Name of the model in the API. */
  readonly modelName: string;
  readonly store: Store | undefined;
  readonly keys: ApiKeys;
  /** Where uses of repositories and actions of admins are recorded; nowhere if not given. */
  readonly audit?: AuditLog | undefined;
  /** Rates of workers that `llavacode plan` has measured; undefined where there is no file of them. */
  readonly rates?: CostModel | undefined;
  /** Who may read /metrics; undefined leaves that to the keys. */
  readonly scrapers?: Scrapers | undefined;
  /**
   * Connection over which gateways share the limits of tenants, fairness between them, and sessions; undefined where
   * the store is not Redis. It is the gateway's own to close.
   */
  readonly redis?: RedisConnection | undefined;
  /** Where the state of a rollout lies; it ends with the process if not given. */
  readonly rolloutStore?: StateStore;
  /** Opens the bundle of a rollout; there are no rollouts where it is not given. */
  readonly openModel?: (state: RolloutState) => Promise<CandidateModel>;
  /** Fingerprint of the bundle in a folder. @throws ServingError for one that cannot take part in a rollout. */
  readonly inspectBundle?: (dir: string) => Promise<string>;
  /** Files of the operator page; undefined where it is off. */
  readonly page?: PageFiles | undefined;
  /** undefined for plain HTTP. */
  readonly tls?: Tls | undefined;
  /** The secret that all services of the system share; undefined where there is none. */
  readonly secret?: SystemSecret | undefined;
  readonly connectPrefill: WorkerPoolOptions['connectPrefill'];
  readonly connectDecode: WorkerPoolOptions['connectDecode'];
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
  readonly rollout: Rollout;
  /** Takes the addresses of the workers of a role, for all arms. */
  readonly workersListed: ComposedArm['workersListed'];
  /** Must be aborted when the gateway stops: it ends a trial that runs. */
  readonly closing: AbortController;
}

/** @throws ServingError config_invalid for a prompt format that the tokenizer cannot write. */
export function composeGateway(config: GatewayConfig, parts: GatewayParts): ComposedGateway {
  const { redis, draining, log, connectPrefill, connectDecode } = parts;
  const weights = parseTenantWeights(config.tenantWeights);
  const weightOf = (tenant: string) => weights?.get(tenant) ?? 1;
  const closing = new AbortController();
  const desired = new DesiredWorkers(parts.rates);
  const announce = redis && ((started: SessionStart) => stable.announce!(started));
  const inflight: InflightRequests = new InflightRequests({ ...config, weightOf, announce, draining });
  const shared = { config, connectPrefill, connectDecode, weightOf, inflight, redis, draining, log };
  const stable: ComposedArm = composeArm({ ...shared, name: 'stable', model: parts, closing: closing.signal });
  const { pool, journey, readiness, format } = stable;
  const ledger = redis && new TenantLedger(redis, LEASE_MS);
  const { softPerChunk } = parts;
  const quota = new TenantQuota({ ledger, capacity: () => pool.capacity, softPerChunk, log });
  const candidates = new Candidates({ ...shared, parts, closing: closing.signal });
  const { fingerprint } = parts;
  const rollout = new Rollout({
    stable: { name: 'stable', fingerprint, journey },
    store: parts.rolloutStore ?? inMemory(),
    openCandidate: (state) => candidates.open(state),
    log,
  });
  const serving = () => (rollout.status.phase === 'promoted' ? (candidates.newest?.pool ?? pool) : pool);
  const app = createServer({
    ...config,
    ...parts,
    rollout,
    inspectBundle: parts.inspectBundle,
    inflight,
    readiness: {
      get problem() {
        return rollout.status.phase === 'promoted' ? undefined : readiness.problem;
      },
    },
    capacity: () => (serving().usable ? serving().capacity : undefined),
    slots: () => serving().slots,
    devices: () => serving().devices,
    acceptance: new Acceptance(),
    format,
    quota,
    recent: new RecentPrompts(),
    remotes: new Remotes(parts.store, config.retrievalBudgetMs),
    audit: parts.audit ?? NO_AUDIT,
    operator: parts.page && { page: parts.page, flights: new FlightRecorder(), ...watched(stable, candidates) },
    tls: parts.tls,
    load: desired,
    beforeScrape: () => desired.publish(stable.figures()),
    localOnly: parts.keys === NO_KEYS && isLoopback(config.host),
  });
  const workersListed: ComposedArm['workersListed'] = (role, listed, lapsed) => {
    stable.workersListed(role, listed, lapsed);
    candidates.workersListed(role, listed, lapsed);
  };
  return { app, pool, journey, inflight, readiness, rollout, workersListed, closing };
}

/** What the operator page shows of the workers and of other gateways. */
function watched(stable: ComposedArm, candidates: Candidates): Pick<WatchedGateway, 'arms' | 'gateways'> {
  return {
    arms: () => {
      const { newest } = candidates;
      const candidate = newest && [{ name: 'candidate', pool: newest.pool, waiting: newest.waiting }];
      return [{ name: 'stable', pool: stable.pool, waiting: stable.waiting }, ...(candidate ?? [])];
    },
    gateways: () => stable.gateways,
  };
}
