/** The gateway's process. */
import { openBundle } from '../lib/model/bundle.ts';
import type { Config } from '../lib/process/config.ts';
import { Lifecycle } from '../lib/process/lifecycle.ts';
import { createLogger } from '../lib/process/log.ts';
import { collectProcessMetrics } from '../lib/process/metrics.ts';
import { createRetrieval } from '../lib/rag/retrieval.ts';
import { openStore } from '../lib/rag/store.ts';
import { connectDecode, connectPrefill } from '../lib/rpc/contract.ts';
import { loadTokenizer } from '../lib/text/tokenizer.ts';
import { SERVICE_SETTINGS, startGateway } from './service.ts';

export const GATEWAY_SETTINGS = [
  ...(['model', 'servedName', 'store', 'queryLines', 'logLevel'] as const),
  ...SERVICE_SETTINGS,
] as const;

export async function runGateway(config: Config<(typeof GATEWAY_SETTINGS)[number]>): Promise<void> {
  const log = createLogger('gateway', config.logLevel);
  const life = new Lifecycle(log, config.drainTimeoutMs);
  collectProcessMetrics('gateway');
  const { manifest, tokenizerDir } = await openBundle(config.model);
  const tokenizer = await loadTokenizer(tokenizerDir);
  const store = await openStore(config.store);
  life.onStop('store', () => store.close());
  const gateway = await startGateway(config, {
    model: config.servedName || manifest.name,
    fingerprint: manifest.fingerprint,
    contextFingerprint: manifest.context?.fingerprint,
    hidden: manifest.llm.spec.hidden,
    tokenizer,
    retrieval: createRetrieval(store, config),
    connectPrefill,
    connectDecode,
    draining: life.draining,
    log,
  });
  life.onStop('http server', gateway.close);
  void gateway.ready.then(() => life.ready(gateway.address, gateway.address));
}
