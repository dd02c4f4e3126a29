/** The gateway's process: opens the bundle, the store and the keys, and starts the gateway. */
import { contextLack, filesOf, openBundle } from '../lib/model/bundle/bundle.ts';
import { FileGuard } from '../lib/model/bundle/integrity.ts';
import { assertGuarded, isLoopback } from '../lib/process/exposure.ts';
import { Lifecycle } from '../lib/process/lifecycle.ts';
import { createLogger, type Logger } from '../lib/process/log.ts';
import { collectProcessMetrics } from '../lib/process/metrics.ts';
import { logTracing } from '../lib/process/tracing.ts';
import { loadQueryEncoder } from '../lib/rag/search/query-encoder.ts';
import { createRetrieval } from '../lib/rag/search/retrieval.ts';
import { withBreaker } from '../lib/rag/store/breaker.ts';
import { openStore, warnIfAway } from '../lib/rag/store/open-store.ts';
import { withRowCache } from '../lib/rag/store/row-cache.ts';
import { withShares } from '../lib/rag/store/shares.ts';
import type { RedisConnection } from '../lib/redis/connection.ts';
import { isRedisUrl } from '../lib/redis/url.ts';
import { connectDecode, connectIndexer, connectPrefill } from '../lib/rpc/contract.ts';
import { loadRpcSecurity, type RpcSecurity } from '../lib/rpc/credentials.ts';
import { loadTokenizer } from '../lib/text/tokenizer.ts';
import { keepIndexesWarm } from './context/index-warmer.ts';
import { leftOutReporter } from './context/left-out-rows.ts';
import { loadScrapers } from './http/scrapers.ts';
import { loadTls } from './http/tls.ts';
import { startGateway } from './service.ts';
import type { GatewayConfig } from './settings.ts';
import { loadApiKeys } from './tenants/api-keys.ts';
import { loadRates } from './workers/desired-workers.ts';

export async function runGateway(config: GatewayConfig): Promise<void> {
  const log = createLogger('gateway', config.logLevel);
  const life = new Lifecycle(log, config.drainTimeoutMs);
  life.onStop('traces', logTracing(log));
  assertGuarded(config, config.apiKeysFile !== '', '--api-keys-file');
  const { keys, scrapers, tls, security, rates } = await readFiles(config);
  sayWhatIsOpen(config, security, log);
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
    withBreaker(withShares(await openStore(config.store, 'serving', log)), { budgetMs: config.retrievalBudgetMs }),
    config.rowCacheBytes,
  );
  void warnIfAway(store, log);
  const redis = await openSharing(config.store);
  const indexer = config.indexer === '' ? undefined : connectIndexer(config.indexer, security);
  life.onStop('indexer client', () => indexer?.close());
  const { threads } = config;
  // Queries are encoded in the gateway, since the workers' engines are busy with prompts. The encoder is loaded only if
  // an index is searched by embeddings.
  const loadEncoder = async () => {
    await files.verify(bundle.dir, filesOf(manifest, ['encoder']));
    return loadQueryEncoder(bundle, { threads });
  };
  const dense = { threads, loadEncoder };
  const { queryLines, indexCacheBytes } = config;
  const onLeftOut = leftOutReporter(log);
  const retrieval = createRetrieval(store, {
    queryLines,
    indexCacheBytes,
    onLeftOut,
    dense: manifest.context && dense,
  });
  const closing = new AbortController();
  const warming = keepIndexesWarm(store, retrieval, keys.tenants, closing.signal);
  life.onStop('store', async () => {
    closing.abort();
    await warming;
    await store.close();
    redis?.close();
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
    scrapers,
    rates,
    redis,
    tls,
    secret: security.secret,
    connectPrefill: (address) => connectPrefill(address, security),
    connectDecode: (address) => connectDecode(address, security),
    draining: life.draining,
    log,
  });
  life.onStop('http server', gateway.close);
  void gateway.ready.then(() => life.ready(gateway.address, gateway.address));
}

/** What the files of its settings say, apart from the bundle. @throws ServingError config_invalid */
async function readFiles(config: GatewayConfig) {
  const [keys, scrapers, tls, security, rates] = await Promise.all([
    loadApiKeys(config.apiKeysFile),
    loadScrapers(config),
    loadTls(config),
    loadRpcSecurity(config),
    loadRates(config.ratesFile),
  ]);
  return { keys, scrapers, tls, security, rates };
}

/** Warns of what the settings leave to the network. */
function sayWhatIsOpen(config: GatewayConfig, security: RpcSecurity, log: Logger): void {
  if (config.apiKeysFile !== '' && config.tlsCert === '' && !isLoopback(config.host)) {
    log.warn(
      'API keys are sent in the clear: set --tls-cert and --tls-key, or put a proxy with TLS before this gateway',
    );
  }
  if (security.proof === 'none' && [...config.prefillWorkers, ...config.decodeWorkers].some(isRedisUrl)) {
    log.warn(
      'every entry of the registry is believed, and its worker gets prompts: set --rpc-secret-file, or --rpc-cert, --rpc-key and --rpc-ca, on all services',
    );
  }
}

/**
 * A connection for what gateways share. It is not the store's: a short question would wait there behind large answers.
 */
async function openSharing(store: string): Promise<RedisConnection | undefined> {
  if (!isRedisUrl(store)) return undefined;
  const { RedisConnection } = await import('../lib/redis/connection.ts');
  return new RedisConnection(store);
}
