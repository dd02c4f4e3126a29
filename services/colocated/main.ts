/** The colocated worker's process: one engine, one set of weights, one KV pool, both gRPC services. */
import { KvPuller } from '../decode/receive.ts';
import { createDecodeService } from '../decode/service.ts';
import { RemoteKv } from '../decode/source.ts';
import { ENGINE_SETTINGS, loadEngine } from '../lib/engine/load.ts';
import type { Config } from '../lib/process/config.ts';
import { serveHealth } from '../lib/process/health.ts';
import { Lifecycle } from '../lib/process/lifecycle.ts';
import { createLogger } from '../lib/process/log.ts';
import { collectProcessMetrics } from '../lib/process/metrics.ts';
import { stayRegistered } from '../lib/registry/registry.ts';
import { serveRpc } from '../lib/rpc/server.ts';
import { createPrefillService } from '../prefill/service.ts';
import { LocalKv } from './local.ts';
import { SharedEngine } from './turns.ts';

export const COLOCATED_SETTINGS = [
  ...(['host', 'port', 'advertise', 'registry', 'metricsPort'] as const),
  ...ENGINE_SETTINGS,
  ...(['prefillChunkTokens', 'sharedChunkTokens', 'queueTokens', 'queueOrder', 'kvLeaseMs'] as const),
  ...(['queueSequences', 'drainTimeoutMs', 'logLevel'] as const),
] as const;

export async function runColocated(config: Config<(typeof COLOCATED_SETTINGS)[number]>): Promise<void> {
  const log = createLogger('colocated', config.logLevel);
  const life = new Lifecycle(log, config.drainTimeoutMs);
  // One set of weights: those for decoding, since a step, not a prompt, is what bandwidth bounds.
  const { bundle, session, modelName } = await loadEngine(config, 'decode', log);
  collectProcessMetrics('colocated', modelName);
  life.onStop('engine', () => session.dispose());
  const engine = new SharedEngine(session);
  const { pool } = session;
  const model = { model: modelName, fingerprint: bundle.manifest.fingerprint, draining: life.draining };
  let listening = '';
  const address = () => config.advertise || listening;

  const puller = new KvPuller(pool, model.fingerprint, log);
  life.onStop('connections to prefill workers', () => puller.close());
  const decode = createDecodeService(engine, {
    ...model,
    source: (loop) => {
      const remote = new RemoteKv(pool, puller, config.queueSequences, () => loop.betweenSteps());
      const { leases, prefixes } = prefill;
      const exclusive = (work: () => void) => engine.inTurn(work);
      return new LocalKv({ pool, leases, prefixes, remote, address, exclusive });
    },
    heldElsewhere: () => prefill.leases.size,
  });
  const prefill = createPrefillService(
    engine,
    {
      ...model,
      // While sequences decode, each of their tokens waits for a chunk.
      chunkTokens: () => (decode.running() > 0 ? config.sharedChunkTokens : config.prefillChunkTokens),
      queueTokens: config.queueTokens,
      queueOrder: config.queueOrder,
      kvLeaseMs: config.kvLeaseMs,
      heldElsewhere: () => decode.held(),
      address,
    },
    log,
  );

  const server = await serveRpc(config.host, config.port, [...prefill.mounts, ...decode.mounts]);
  listening = server.address;
  life.onStop('rpc server', () => server.close(AbortSignal.timeout(config.drainTimeoutMs * 0.9)));
  const metricsAddress = await serveHealth(config.host, config.metricsPort, life, prefill.observe);
  server.setServing(true);
  life.draining.addEventListener('abort', () => server.setServing(false));
  const leave = stayRegistered(config.registry, ['prefill', 'decode'], address(), log);
  life.onStop('registry', leave);
  life.ready(server.address, metricsAddress);
}
