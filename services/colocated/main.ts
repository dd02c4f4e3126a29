/** The colocated worker's process: one engine, one set of weights, one KV pool, both gRPC services. */
import { KvPuller } from '../decode/kv-puller.ts';
import { loadEngine } from '../lib/engine/load.ts';
import { runWorker } from '../lib/worker/run.ts';
import { openKvDisk } from '../prefill/kv-on-disk.ts';
import { createColocatedService } from './service.ts';
import type { ColocatedConfig } from './settings.ts';

export const runColocated = (config: ColocatedConfig): Promise<void> =>
  runWorker({
    name: 'colocated',
    roles: ['prefill', 'decode'],
    config,
    build: async ({ log, life, files, security, address }) => {
      // One set of weights: those for decoding, because bandwidth bounds the steps, not the prompts.
      const { bundle, session, origin, modelName, device, lost, dispose } = await loadEngine(
        config,
        'both',
        log,
        files,
      );
      life.onStop('engine', dispose);
      const { fingerprint } = bundle.manifest;
      const puller = new KvPuller(session.pool, fingerprint, log, config.kvWire, security);
      life.onStop('connections to prefill workers', () => puller.close());
      const disk = await openKvDisk(config, origin, session.pool, log);
      const options = {
        ...config,
        model: modelName,
        fingerprint,
        device: device.kind,
        draining: life.draining,
        address,
        secret: security.secret,
      };
      const service = createColocatedService({ session, puller, disk, log }, options);
      life.onStop('KV on disk', () => service.saveKv(life.almostOver));
      await service.warmUp();
      return { mounts: service.mounts, observe: service.observe, modelName, device, lost };
    },
  });
