/** The gateway's process: opens the bundle, the store and the keys, and starts the gateway. */
import { readFile } from 'node:fs/promises';
import { createSecureContext } from 'node:tls';
import { contextLack, filesOf, openBundle } from '../lib/model/bundle/bundle.ts';
import { FileGuard } from '../lib/model/bundle/integrity.ts';
import { ServingError } from '../lib/process/errors.ts';
import { assertGuarded, isLoopback } from '../lib/process/exposure.ts';
import { Lifecycle } from '../lib/process/lifecycle.ts';
import { createLogger } from '../lib/process/log.ts';
import { collectProcessMetrics } from '../lib/process/metrics.ts';
import { loadQueryEncoder } from '../lib/rag/search/query-encoder.ts';
import { createRetrieval } from '../lib/rag/search/retrieval.ts';
import { withBreaker } from '../lib/rag/store/breaker.ts';
import { openStore, warnIfAway } from '../lib/rag/store/open-store.ts';
import { withRowCache } from '../lib/rag/store/row-cache.ts';
import { connectDecode, connectIndexer, connectPrefill } from '../lib/rpc/contract.ts';
import { loadRpcSecurity } from '../lib/rpc/credentials.ts';
import { loadTokenizer } from '../lib/text/tokenizer.ts';
import { keepIndexesWarm } from './context/index-warmer.ts';
import type { Tls } from './http/app.ts';
import { startGateway } from './service.ts';
import type { GatewayConfig } from './settings.ts';
import { loadApiKeys } from './tenants/api-keys.ts';

export async function runGateway(config: GatewayConfig): Promise<void> {
  const log = createLogger('gateway', config.logLevel);
  const life = new Lifecycle(log, config.drainTimeoutMs);
  assertGuarded(config, config.apiKeysFile !== '', '--api-keys-file');
  if (config.apiKeysFile !== '' && config.tlsCert === '' && !isLoopback(config.host)) {
    log.warn(
      'API keys are sent in the clear: set --tls-cert and --tls-key, or put a proxy with TLS before this gateway',
    );
  }
  const [keys, tls, security] = await Promise.all([
    loadApiKeys(config.apiKeysFile),
    loadTls(config),
    loadRpcSecurity(config),
  ]);
  const bundle = await openBundle(config.model);
  const { manifest, tokenizerDir } = bundle;
  const lack = contextLack(manifest);
  if (lack) log.warn({ bundle: bundle.dir, withoutProjector: config.withoutProjector }, lack);
  const modelName = config.servedName || manifest.name;
  collectProcessMetrics('gateway', modelName);
  const files = new FileGuard(log);
  files.serveFrom(bundle.dir, filesOf(manifest, ['tokenizer']));
  const tokenizer = await loadTokenizer(tokenizerDir);
  const store = withRowCache(
    withBreaker(await openStore(config.store, 'serving', log), { budgetMs: config.retrievalBudgetMs }),
    config.rowCacheBytes,
  );
  void warnIfAway(store, log);
  const indexer = config.indexer === '' ? undefined : connectIndexer(config.indexer, security);
  life.onStop('indexer client', () => indexer?.close());
  const { threads } = config;
  // Queries are encoded in the gateway, since the workers' engines are busy with prompts. The encoder is loaded only if
  // an index is searched by embeddings.
  const loadEncoder = async () => {
    await files.verify(bundle.dir, filesOf(manifest, ['encoder']));
    return loadQueryEncoder(bundle, { provider: 'cpu', threads });
  };
  const dense = { threads, loadEncoder };
  const { queryLines, indexCacheBytes } = config;
  const retrieval = createRetrieval(store, { queryLines, indexCacheBytes, dense: manifest.context && dense });
  const closing = new AbortController();
  const warming = keepIndexesWarm(store, retrieval, keys.tenants, closing.signal);
  life.onStop('store', async () => {
    closing.abort();
    await warming;
    await store.close();
  });
  await files.settled();
  void files.watch(life.draining, (damage) => life.fail(damage));
  const gateway = await startGateway(config, {
    modelName,
    fingerprint: manifest.fingerprint,
    contextFingerprint: manifest.context?.fingerprint,
    hidden: manifest.llm.spec.hidden,
    tokenizer,
    eosIds: manifest.llm.spec.eosIds,
    retrieval,
    store,
    indexer,
    keys,
    tls,
    connectPrefill: (address) => connectPrefill(address, security),
    connectDecode: (address) => connectDecode(address, security),
    draining: life.draining,
    log,
  });
  life.onStop('http server', gateway.close);
  void gateway.ready.then(() => life.ready(gateway.address, gateway.address));
}

/**
 * The certificate and its key, of which both files or none are given.
 * @throws ServingError config_invalid
 */
async function loadTls({ tlsCert, tlsKey }: Pick<GatewayConfig, 'tlsCert' | 'tlsKey'>): Promise<Tls | undefined> {
  if (tlsCert === '' && tlsKey === '') return undefined;
  try {
    const [cert, key] = await Promise.all([readFile(tlsCert), readFile(tlsKey)]);
    createSecureContext({ cert, key });
    return { cert, key };
  } catch (cause) {
    const why = (cause as Error).message;
    throw new ServingError('config_invalid', `--tls-cert ${tlsCert}, --tls-key ${tlsKey}: ${why}`, { cause });
  }
}
