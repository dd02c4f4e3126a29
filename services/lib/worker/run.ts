/**
 * Runs the process of a service that listens for gRPC: loads it, listens, serves, and registers where gateways look.
 */
import { FileGuard } from '../model/bundle/integrity.ts';
import type { ConfigOf } from '../process/config.ts';
import type { ServingError } from '../process/errors.ts';
import { isLoopback, reachableAddress } from '../process/exposure.ts';
import { serveHealth } from '../process/health.ts';
import { Lifecycle } from '../process/lifecycle.ts';
import { createLogger, type Logger } from '../process/log.ts';
import { collectProcessMetrics, type MetricsService, metrics } from '../process/metrics.ts';
import { stepBack } from '../process/priority.ts';
import { reloadOnChange } from '../process/reload.ts';
import { logTracing } from '../process/tracing.ts';
import type { WorkerRole } from '../redis/worker-registry.ts';
import { loadServingSecurity, type RpcSecurity, rpcCertificates } from '../rpc/credentials.ts';
import { type MountedService, serveRpc } from '../rpc/server.ts';
import type { RPC_SERVICE_SETTINGS, WORKER_SETTINGS } from './settings.ts';

/** The parts of the process that a service is built with. */
interface ProcessParts {
  readonly log: Logger;
  readonly life: Pick<Lifecycle, 'draining' | 'almostOver' | 'onStop'>;
  readonly security: RpcSecurity;
  /** To be told of every file of a bundle that the service loads. */
  readonly files: FileGuard;
  /** host:port under which others reach the process; known once it listens. */
  readonly address: () => string;
}

interface BuiltService {
  readonly mounts: readonly MountedService[];
  /** Labels the metrics of a service that serves a model. */
  readonly modelName?: string;
  /** What a service that serves a model computes it on. */
  readonly device?: { readonly kind: string; readonly name: string; readonly reason: string };
  /** Resolves with the reason when the device cannot be used any more: the process then ends. */
  readonly lost?: Promise<ServingError> | undefined;
  /** Brings gauges up to date before they are read. */
  readonly observe?: () => void;
}

interface WorkerOptions {
  /** Name of the service in logs and metrics. */
  readonly name: MetricsService;
  /**
   * Roles under which the registry lists the process for gateways; none for an indexer, whose address they are given.
   */
  readonly roles: readonly WorkerRole[];
  readonly config: ConfigOf<typeof RPC_SERVICE_SETTINGS> &
    Partial<Pick<ConfigOf<typeof WORKER_SETTINGS>, 'advertise' | 'registry'>>;
  /** Loads and composes the service. The process listens when this has resolved and the files are verified. */
  readonly build: (process: ProcessParts) => Promise<BuiltService>;
}

/** Resolves when the service is ready. @throws ServingError the reason why it cannot start. */
export async function runWorker({ name, roles, config, build }: WorkerOptions): Promise<void> {
  const log = createLogger(name, config.logLevel);
  if (config.nice > 0) stepBack(config.nice);
  const life = new Lifecycle(log, config.drainTimeoutMs);
  life.onStop('traces', logTracing(log));
  const security = await loadServingSecurity(config);
  void reloadOnChange(rpcCertificates(config, security), life, log);
  if (security.proof === 'secret' && !isLoopback(config.host)) {
    log.warn(
      'KV and prompts are sent in the clear: set --rpc-cert, --rpc-key and --rpc-ca if others share the network',
    );
  }
  let address = '';
  const files = new FileGuard(log);
  const service = await Promise.race([build({ log, life, security, files, address: () => address }), files.damaged]);
  await files.settled();
  collectProcessMetrics(name, service.modelName);
  const { device } = service;
  if (device) metrics.deviceInfo.set({ ...device }, 1);
  const server = await serveRpc(config.host, config.port, service.mounts, security, log);
  address = reachableAddress(server.address, config.advertise ?? '');
  life.onStop('rpc server', () => server.close(life.almostOver));
  const metricsAddress = await serveHealth(config.metricsHost, config.metricsPort, life, {
    beforeScrape: service.observe,
    tls: security.tls,
    note: device && `computes on ${device.name} (${device.reason})`,
  });
  server.setServing(true);
  life.draining.addEventListener('abort', () => server.setServing(false));
  if (config.registry) {
    const { stayRegistered } = await import('../redis/worker-registry.ts'); // takes 90 ms of CPU time to load
    life.onStop('registry', stayRegistered(config.registry, roles, address, log, security.secret));
  }
  life.ready(server.address, metricsAddress);
  void service.lost?.then((reason) => life.fail(reason));
  void files.watch(life.draining, (damage) => life.fail(damage));
}
