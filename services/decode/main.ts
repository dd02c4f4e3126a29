/** The decode worker's process. */
import { loadEngine } from '../lib/engine/load.ts';
import { runWorker } from '../lib/worker/run.ts';
import { KvPuller } from './kv-puller.ts';
import { RemoteKv } from './kv-source.ts';
import { createDecodeService } from './service.ts';
import type { DecodeConfig } from './settings.ts';

export const runDecode = (config: DecodeConfig): Promise<void> =>
  runWorker({
    name: 'decode',
    roles: ['decode'],
    config,
    build: async ({ log, life, files, security }) => {
      const { bundle, session, modelName, device, lost, dispose } = await loadEngine(config, 'decode', log, files);
      life.onStop('engine', dispose);
      const { fingerprint } = bundle.manifest;
      const puller = new KvPuller(session.pool, fingerprint, log, config.kvWire, security);
      life.onStop('connections to prefill workers', () => puller.close());
      const source = new RemoteKv(session.pool, puller, config.queueSequences);
      const service = createDecodeService(session, {
        model: modelName,
        fingerprint,
        device: device.kind,
        source,
        draining: life.draining,
        log,
      });
      return { mounts: service.mounts, modelName, device, lost };
    },
  });
