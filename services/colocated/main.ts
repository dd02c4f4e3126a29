/** The colocated worker's process: one engine, one set of weights, one KV pool, both gRPC services. */
import { KvPuller } from '../decode/kv-puller.ts';
import { loadEngine } from '../lib/engine/load.ts';
import { reachableAddress } from '../lib/process/exposure.ts';
import { serveHealth } from '../lib/process/health.ts';
import { Lifecycle } from '../lib/process/lifecycle.ts';
import { createLogger } from '../lib/process/log.ts';
import { collectProcessMetrics } from '../lib/process/metrics.ts';
import { stayRegistered } from '../lib/redis/worker-registry.ts';
import { loadServingSecurity } from '../lib/rpc/credentials.ts';
import { serveRpc } from '../lib/rpc/server.ts';
import { createColocatedService } from './service.ts';
import type { ColocatedConfig } from './settings.ts';

export async function runColocated(config: ColocatedConfig): Promise<void> {
  const log = createLogger('colocated', config.logLevel);
  const life = new Lifecycle(log, config.drainTimeoutMs);
  const security = await loadServingSecurity(config);
  // One set of weights: those for decoding, since a step, not a prompt, is what bandwidth bounds.
  const { bundle, session, modelName } = await loadEngine(config, 'decode', log);
  collectProcessMetrics('colocated', modelName);
  life.onStop('engine', () => session.dispose());
  let listening = '';
  const address = () => listening;
  const { fingerprint } = bundle.manifest;
  const puller = new KvPuller(session.pool, fingerprint, log, config.kvWire, security);
  life.onStop('connections to prefill workers', () => puller.close());
  const { prefillChunkTokens, sharedChunkTokens, queueTokens, queueOrder, kvLeaseMs, queueSequences } = config;
  const service = createColocatedService(
    session,
    {
      ...{ model: modelName, fingerprint, draining: life.draining, address },
      ...{ prefillChunkTokens, sharedChunkTokens, queueTokens, queueOrder, kvLeaseMs, queueSequences },
    },
    puller,
    log,
  );
  await service.warmUp();
  const server = await serveRpc(config.host, config.port, service.mounts, security);
  listening = reachableAddress(server.address, config.advertise);
  life.onStop('rpc server', () => server.close(life.almostOver));
  const metricsAddress = await serveHealth(config.metricsHost, config.metricsPort, life, service.observe);
  server.setServing(true);
  life.draining.addEventListener('abort', () => server.setServing(false));
  const leave = stayRegistered(config.registry, ['prefill', 'decode'], listening, log);
  life.onStop('registry', leave);
  life.ready(server.address, metricsAddress);
}
