/** The indexer's process: it holds the encoder, if the bundle has one, and takes uploads from the gateway. */
import { contextLack, filesOf, openBundle } from '../lib/model/bundle/bundle.ts';
import { serveTasks } from '../lib/process/supervised.ts';
import { openContextEncoder } from '../lib/rag/encode/device-encoder.ts';
import { openStore, warnIfAway } from '../lib/rag/store/open-store.ts';
import { runWorker } from '../lib/worker/run.ts';
import { type FolderTask, indexFolder } from './folder-task.ts';
import { createIndexerService } from './service.ts';
import type { IndexerConfig } from './settings.ts';

export const runIndexer = (config: IndexerConfig): Promise<void> =>
  runWorker({
    name: 'indexer',
    roles: [],
    config,
    build: async ({ log, life, files }) => {
      const bundle = await openBundle(config.model, config);
      files.serveFrom(bundle.dir, filesOf(bundle.manifest, ['encoder', 'projector', 'tokenizer']));
      const encoder = await openContextEncoder(bundle, config, log);
      log.info({ device: encoder.device }, 'encoder loaded');
      const lack = contextLack(bundle.manifest);
      if (lack) log.warn({ bundle: bundle.dir }, lack);
      life.onStop('encoder', () => encoder.dispose());
      const store = await openStore(config.store, 'indexing', log);
      life.onStop('store', () => store.close());
      void warnIfAway(store, log);
      const parts = { store, encoder, options: config, signal: life.draining, log };
      const tasksEnded = serveTasks((task, onProgress) => indexFolder(task as FolderTask, parts, onProgress));
      life.onStop('task of the supervisor', tasksEnded);
      const service = createIndexerService(store, encoder, { ...config, draining: life.draining }, log);
      return { ...service, device: encoder.device, lost: encoder.lost };
    },
  });
