/** The gateway's process. */
import { openBundle } from '../lib/model/bundle.ts';
import type { Config } from '../lib/process/config.ts';
import { Lifecycle } from '../lib/process/lifecycle.ts';
import { createLogger } from '../lib/process/log.ts';
import { collectProcessMetrics } from '../lib/process/metrics.ts';
import { withBreaker } from '../lib/rag/breaker.ts';
import { loadQueryEncoder } from '../lib/rag/query-encoder.ts';
import { createRetrieval } from '../lib/rag/retrieval.ts';
import { withRowCache } from '../lib/rag/row-cache.ts';
import { openStore } from '../lib/rag/store.ts';
import { connectDecode, connectIndexer, connectPrefill } from '../lib/rpc/contract.ts';
import { loadTokenizer } from '../lib/text/tokenizer.ts';
import { loadApiKeys } from './auth.ts';
import { SERVICE_SETTINGS, startGateway } from './service.ts';

export const GATEWAY_SETTINGS = [
  ...(['model', 'servedName', 'store', 'queryLines', 'threads', 'logLevel'] as const),
  ...(['rowCacheBytes', 'indexer', 'apiKeysFile'] as const),
  ...SERVICE_SETTINGS,
] as const;

export async function runGateway(config: Config<(typeof GATEWAY_SETTINGS)[number]>): Promise<void> {
  const log = createLogger('gateway', config.logLevel);
  const life = new Lifecycle(log, config.drainTimeoutMs);
  collectProcessMetrics('gateway');
  const bundle = await openBundle(config.model);
  const { manifest, tokenizerDir } = bundle;
  const tokenizer = await loadTokenizer(tokenizerDir);
  const keys = await loadApiKeys(config.apiKeysFile);
  const slowMs = config.retrievalBudgetMs;
  const store = withRowCache(withBreaker(await openStore(config.store), { slowMs }), config.rowCacheBytes);
  life.onStop('store', () => store.close());
  const indexer = config.indexer === '' ? undefined : connectIndexer(config.indexer);
  life.onStop('indexer client', () => indexer?.close());
  const { threads } = config;
  // Queries are encoded here, and only if an index is searched by embeddings: the workers' engines are busy with prompts.
  const dense = { threads, loadEncoder: () => loadQueryEncoder(bundle, { provider: 'cpu', threads }) };
  const gateway = await startGateway(config, {
    model: config.servedName || manifest.name,
    fingerprint: manifest.fingerprint,
    contextFingerprint: manifest.context?.fingerprint,
    hidden: manifest.llm.spec.hidden,
    tokenizer,
    retrieval: createRetrieval(store, { queryLines: config.queryLines, dense: manifest.context && dense }),
    store,
    indexer,
    keys,
    connectPrefill,
    connectDecode,
    draining: life.draining,
    log,
  });
  life.onStop('http server', gateway.close);
  void gateway.ready.then(() => life.ready(gateway.address, gateway.address));
}
