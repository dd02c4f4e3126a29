/** The decode worker's process. */
import { loadEngine } from '../lib/engine/load.ts';
import { reachableAddress } from '../lib/process/exposure.ts';
import { serveHealth } from '../lib/process/health.ts';
import { Lifecycle } from '../lib/process/lifecycle.ts';
import { createLogger } from '../lib/process/log.ts';
import { collectProcessMetrics } from '../lib/process/metrics.ts';
import { stayRegistered } from '../lib/redis/worker-registry.ts';
import { loadServingSecurity } from '../lib/rpc/credentials.ts';
import { serveRpc } from '../lib/rpc/server.ts';
import { KvPuller } from './kv-puller.ts';
import { RemoteKv } from './kv-source.ts';
import { createDecodeService } from './service.ts';
import type { DecodeConfig } from './settings.ts';

export async function runDecode(config: DecodeConfig): Promise<void> {
  const log = createLogger('decode', config.logLevel);
  const life = new Lifecycle(log, config.drainTimeoutMs);
  const security = await loadServingSecurity(config);
  const { bundle, session, modelName } = await loadEngine(config, 'decode', log);
  collectProcessMetrics('decode', modelName);
  life.onStop('engine', () => session.dispose());
  const { fingerprint } = bundle.manifest;
  const puller = new KvPuller(session.pool, fingerprint, log, config.kvWire, security);
  life.onStop('connections to prefill workers', () => puller.close());
  const service = createDecodeService(session, {
    model: modelName,
    fingerprint,
    source: new RemoteKv(session.pool, puller, config.queueSequences),
    draining: life.draining,
  });
  const server = await serveRpc(config.host, config.port, service.mounts, security);
  life.onStop('rpc server', () => server.close(life.almostOver));
  const metricsAddress = await serveHealth(config.metricsHost, config.metricsPort, life);
  server.setServing(true);
  life.draining.addEventListener('abort', () => server.setServing(false));
  const leave = stayRegistered(config.registry, ['decode'], reachableAddress(server.address, config.advertise), log);
  life.onStop('registry', leave);
  life.ready(server.address, metricsAddress);
}
