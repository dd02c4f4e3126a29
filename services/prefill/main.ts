/** The prefill worker's process. */
import { loadEngine } from '../lib/engine/load.ts';
import { PrefixCache } from '../lib/kv/prefix.ts';
import { runWorker } from '../lib/worker/run.ts';
import { openKvDisk } from './kv-on-disk.ts';
import { LeaseTable } from './leases.ts';
import { createPrefillService } from './service.ts';
import type { PrefillConfig } from './settings.ts';

export const runPrefill = (config: PrefillConfig): Promise<void> =>
  runWorker({
    name: 'prefill',
    roles: ['prefill'],
    config,
    build: async ({ log, life, security, files, address }) => {
      const { bundle, session, origin, modelName, device, lost, dispose } = await loadEngine(
        config,
        'prefill',
        log,
        files,
      );
      life.onStop('engine', dispose);
      const prefixes = new PrefixCache(session.pool);
      const leases = new LeaseTable(session.pool, prefixes, config.kvLeaseMs);
      const disk = await openKvDisk(config, origin, session.pool, log);
      const service = createPrefillService(
        { engine: session, prefixes, leases, disk, log },
        {
          ...config,
          model: modelName,
          fingerprint: bundle.manifest.fingerprint,
          device: device.kind,
          chunkTokens: () => config.prefillChunkTokens,
          draining: life.draining,
          address,
          secret: security.secret,
        },
      );
      life.onStop('KV on disk', () => service.saveKv(life.almostOver));
      await service.warmUp();
      return { mounts: service.mounts, observe: service.observe, modelName, device, lost };
    },
  });
