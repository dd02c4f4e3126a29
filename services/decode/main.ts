/** The decode worker's process. */
import { ENGINE_SETTINGS, loadEngine } from '../lib/engine/load.ts';
import type { Config } from '../lib/process/config.ts';
import { serveHealth } from '../lib/process/health.ts';
import { Lifecycle } from '../lib/process/lifecycle.ts';
import { createLogger } from '../lib/process/log.ts';
import { collectProcessMetrics } from '../lib/process/metrics.ts';
import { serveRpc } from '../lib/rpc/server.ts';
import { createDecodeService } from './service.ts';

export const DECODE_SETTINGS = [
  ...(['host', 'port', 'metricsPort'] as const),
  ...ENGINE_SETTINGS,
  ...(['queueSequences', 'drainTimeoutMs', 'logLevel'] as const),
] as const;

export async function runDecode(config: Config<(typeof DECODE_SETTINGS)[number]>): Promise<void> {
  const log = createLogger('decode', config.logLevel);
  const life = new Lifecycle(log, config.drainTimeoutMs);
  const { bundle, session, modelName } = await loadEngine(config, 'decode', log);
  collectProcessMetrics('decode', modelName);
  life.onStop('engine', () => session.dispose());
  const service = createDecodeService(
    session,
    {
      model: modelName,
      fingerprint: bundle.manifest.fingerprint,
      queueSequences: config.queueSequences,
      draining: life.draining,
    },
    log,
  );
  life.onStop('connections to prefill workers', service.close);
  const server = await serveRpc(config.host, config.port, service.mounts);
  life.onStop('rpc server', () => server.close(AbortSignal.timeout(config.drainTimeoutMs * 0.9)));
  const metricsAddress = await serveHealth(config.host, config.metricsPort, life);
  server.setServing(true);
  life.draining.addEventListener('abort', () => server.setServing(false));
  life.ready(server.address, metricsAddress);
}
