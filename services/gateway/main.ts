/** The gateway's process: opens the bundle, the store and the keys, and starts the gateway. */
import { contextLack, filesOf, openBundle } from '../lib/model/bundle/bundle.ts';
import { FileGuard } from '../lib/model/bundle/integrity.ts';
import { type AuditLog, openAuditLog } from '../lib/process/audit-log.ts';
import { RenewedTls } from '../lib/process/certificate.ts';
import { assertGuarded, isLoopback } from '../lib/process/exposure.ts';
import { Lifecycle } from '../lib/process/lifecycle.ts';
import { createLogger, type Logger } from '../lib/process/log.ts';
import { collectProcessMetrics } from '../lib/process/metrics.ts';
import { type Reloadable, reloadOnChange } from '../lib/process/reload.ts';
import { logTracing } from '../lib/process/tracing.ts';
import { withBreaker } from '../lib/rag/store/breaker.ts';
import { openStore, warnIfAway } from '../lib/rag/store/open-store.ts';
import { withRowCache } from '../lib/rag/store/row-cache.ts';
import { withShares } from '../lib/rag/store/shares.ts';
import type { RedisConnection } from '../lib/redis/connection.ts';
import { isRedisUrl } from '../lib/redis/url.ts';
import { connectDecode, connectIndexer, connectPrefill } from '../lib/rpc/contract.ts';
import { loadRpcSecurity, type RpcSecurity, rpcCertificates } from '../lib/rpc/credentials.ts';
import { loadTokenizer } from '../lib/text/tokenizer.ts';
import { keepIndexesWarm } from './context/index-warmer.ts';
import { loadPage } from './http/admin-page.ts';
import { loadScrapers } from './http/scrapers.ts';
import { loadTls, renewTls } from './http/tls.ts';
import { inFolder, inRedis } from './rollout/state-store.ts';
import { candidateModels, retrievalOf, servedBy } from './served-model.ts';
import { startGateway } from './service.ts';
import type { GatewayConfig } from './settings.ts';
import { loadApiKeys, NO_KEYS, noteKeys, RenewedKeys } from './tenants/api-keys.ts';
import { loadRates } from './workers/desired-workers.ts';

export async function runGateway(config: GatewayConfig): Promise<void> {
  const log = createLogger('gateway', config.logLevel);
  const life = new Lifecycle(log, config.drainTimeoutMs);
  life.onStop('traces', logTracing(log));
  assertGuarded(config, config.apiKeysFile !== '', '--api-keys-file');
  const audit = await openAuditLog(config.auditLog, 'gateway', log);
  life.onStop('audit log', () => audit.close());
  const [{ keys, tls, security }, scrapers, rates, page] = await Promise.all([
    loadProofs(config, audit, life, log),
    loadScrapers(config),
    loadRates(config.ratesFile),
    config.adminPage ? loadPage() : undefined,
  ]);
  sayWhatIsOpen(config, security, log);
  const bundle = await openBundle(config.model, config);
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
  const retrieval = retrievalOf(bundle, store, files, config, log);
  const closing = new AbortController();
  const warming = keepIndexesWarm(store, retrieval, keys, closing.signal);
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
    ...servedBy(manifest),
    tokenizer,
    retrieval,
    store,
    indexer,
    keys,
    audit,
    scrapers,
    rates,
    page,
    redis,
    ...(config.rollouts && {
      ...candidateModels({ config, manifest, tokenizer, store, keys, security, log }),
      rolloutStore: redis ? inRedis(redis) : inFolder(config.store.replace(/^lmdb:/, '')),
    }),
    tls,
    secret: security.secret,
    connectPrefill: (address, onBroken) => connectPrefill(address, security, onBroken),
    connectDecode: (address, onBroken) => connectDecode(address, security, onBroken),
    draining: life.draining,
    log,
  });
  life.onStop('http server', gateway.close);
  void gateway.ready.then(() => life.ready(gateway.address, gateway.address));
}

/** An action that no request asked for. */
const BY_THE_FILE = {
  outcome: 'ok',
  status: null,
  request_id: null,
  tenant: null,
  key: null,
  client: null,
  repo: null,
};

/** Keys, certificate and the proof between services; each follows its files. @throws ServingError config_invalid */
async function loadProofs(config: GatewayConfig, audit: AuditLog, life: Lifecycle, log: Logger) {
  const { apiKeysFile, tlsCert, tlsKey } = config;
  const [fileKeys, pem, security] = await Promise.all([
    loadApiKeys(apiKeysFile),
    loadTls(config),
    loadRpcSecurity(config),
  ]);
  const keys = fileKeys === NO_KEYS ? undefined : new RenewedKeys(fileKeys);
  noteKeys(fileKeys);
  const tls = pem && new RenewedTls(pem);
  const follow = (reloadable: Reloadable) => void reloadOnChange(reloadable, life, log);
  if (keys) {
    const reload = async () => {
      const read = await loadApiKeys(apiKeysFile);
      keys.renew(read);
      noteKeys(read);
      const detail = { tenants: keys.tenants.length };
      audit.write({ ...BY_THE_FILE, action: 'keys.read', detail });
      return detail;
    };
    follow({ name: 'api_keys', files: [apiKeysFile], reload });
  }
  if (tls) follow({ name: 'tls', files: [tlsCert, tlsKey], reload: () => renewTls(tls, config) });
  follow(rpcCertificates(config, security));
  return { keys: keys ?? NO_KEYS, tls, security };
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
      'every entry of the registry is believed, and its worker gets prompts: set --rpc-secret-file, or ' +
        '--rpc-cert, --rpc-key and --rpc-ca, on all services',
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
