/** The indexer's process: it holds the encoder and takes uploads from the gateway. */
import { openBundle } from '../lib/model/bundle/bundle.ts';
import type { Config } from '../lib/process/config.ts';
import { serveHealth } from '../lib/process/health.ts';
import { Lifecycle } from '../lib/process/lifecycle.ts';
import { createLogger } from '../lib/process/log.ts';
import { collectProcessMetrics } from '../lib/process/metrics.ts';
import { loadContextEncoder } from '../lib/rag/encode/encode.ts';
import { needsEmbeddings } from '../lib/rag/retriever-name.ts';
import { openStore } from '../lib/rag/store/open-store.ts';
import { loadServingSecurity, RPC_SETTINGS } from '../lib/rpc/credentials.ts';
import { serveRpc } from '../lib/rpc/server.ts';
import { createIndexerService } from './service.ts';

export const INDEXER_SETTINGS = [
  ...([
    'host',
    'port',
    'metricsHost',
    'metricsPort',
    'model',
    'store',
    'provider',
    'threads',
    'chunkLines',
    'chunkStride',
  ] as const),
  ...(['maxFileBytes', 'maxUploadBytes', 'maxRepoBytes', 'maxRepoFiles', 'drainTimeoutMs', 'logLevel'] as const),
  'retriever',
  'insecureListen',
  ...RPC_SETTINGS,
] as const;

export async function runIndexer(config: Config<(typeof INDEXER_SETTINGS)[number]>): Promise<void> {
  const log = createLogger('indexer', config.logLevel);
  const life = new Lifecycle(log, config.drainTimeoutMs);
  collectProcessMetrics('indexer');
  const security = await loadServingSecurity(config);
  const keepEmbeddings = needsEmbeddings(config.retriever);
  const encoder = await loadContextEncoder(await openBundle(config.model), { ...config, keepEmbeddings });
  life.onStop('encoder', () => encoder.dispose());
  const store = await openStore(config.store);
  life.onStop('store', () => store.close());
  const service = createIndexerService(store, encoder, { ...config, draining: life.draining }, log);
  const server = await serveRpc(config.host, config.port, service.mounts, security);
  life.onStop('rpc server', () => server.close(life.almostOver));
  const metricsAddress = await serveHealth(config.metricsHost, config.metricsPort, life);
  server.setServing(true);
  life.draining.addEventListener('abort', () => server.setServing(false));
  life.ready(server.address, metricsAddress);
}
