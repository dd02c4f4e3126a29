/** The prefill worker's process. */
import { loadEngine } from '../lib/engine/load.ts';
import { PrefixCache } from '../lib/kv/prefix.ts';
import { reachableAddress } from '../lib/process/exposure.ts';
import { serveHealth } from '../lib/process/health.ts';
import { Lifecycle } from '../lib/process/lifecycle.ts';
import { createLogger } from '../lib/process/log.ts';
import { collectProcessMetrics } from '../lib/process/metrics.ts';
import { stayRegistered } from '../lib/redis/worker-registry.ts';
import { loadServingSecurity } from '../lib/rpc/credentials.ts';
import { serveRpc } from '../lib/rpc/server.ts';
import { LeaseTable } from './leases.ts';
import { createPrefillService } from './service.ts';
import type { PrefillConfig } from './settings.ts';

export async function runPrefill(config: PrefillConfig): Promise<void> {
  const log = createLogger('prefill', config.logLevel);
  const life = new Lifecycle(log, config.drainTimeoutMs);
  const security = await loadServingSecurity(config);
  const { bundle, session, modelName } = await loadEngine(config, 'prefill', log);
  collectProcessMetrics('prefill', modelName);
  life.onStop('engine', () => session.dispose());
  let address = '';
  const prefixes = new PrefixCache(session.pool);
  const leases = new LeaseTable(session.pool, prefixes, config.kvLeaseMs);
  const service = createPrefillService(
    { engine: session, prefixes, leases, log },
    {
      model: modelName,
      fingerprint: bundle.manifest.fingerprint,
      chunkTokens: () => config.prefillChunkTokens,
      queueOrder: config.queueOrder,
      queueTokens: config.queueTokens,
      draining: life.draining,
      address: () => address,
    },
  );
  await service.warmUp();
  const server = await serveRpc(config.host, config.port, service.mounts, security);
  address = reachableAddress(server.address, config.advertise);
  life.onStop('rpc server', () => server.close(life.almostOver));
  const metricsAddress = await serveHealth(config.metricsHost, config.metricsPort, life, service.observe);
  server.setServing(true);
  life.draining.addEventListener('abort', () => server.setServing(false));
  const leave = stayRegistered(config.registry, ['prefill'], address, log);
  life.onStop('registry', leave);
  life.ready(server.address, metricsAddress);
}
