/** A bundle as this process serves it: what is opened of it, at the start and for the candidate of a rollout. */
import { type Bundle, filesOf, type Manifest, openBundle, softPerChunkOf } from '../lib/model/bundle/bundle.ts';
import { FileGuard } from '../lib/model/bundle/integrity.ts';
import { ServingError } from '../lib/process/errors.ts';
import type { Logger } from '../lib/process/log.ts';
import { loadQueryEncoder } from '../lib/rag/search/query-encoder.ts';
import { createRetrieval, type WarmableRetrieval } from '../lib/rag/search/retrieval.ts';
import { withSideIndexes } from '../lib/rag/store/side-index.ts';
import type { Store } from '../lib/rag/store/store.ts';
import { connectIndexer } from '../lib/rpc/contract.ts';
import type { RpcSecurity } from '../lib/rpc/credentials.ts';
import type { Tokenizer } from '../lib/text/tokenizer.ts';
import type { CandidateModel } from './candidates.ts';
import { keepIndexesWarm } from './context/index-warmer.ts';
import { leftOutReporter } from './context/left-out-rows.ts';
import type { RolloutState } from './rollout/state.ts';
import type { GatewayConfig } from './settings.ts';
import type { ApiKeys } from './tenants/api-keys.ts';

type RetrievalConfig = Pick<GatewayConfig, 'threads' | 'queryLines' | 'indexCacheBytes'>;

/**
 * The search of a bundle's own indexes. Queries are encoded in the gateway, since the workers' engines are busy with
 * prompts. The encoder is loaded only if an index is searched by embeddings.
 */
export function retrievalOf(
  bundle: Bundle,
  store: Store,
  files: FileGuard,
  { threads, queryLines, indexCacheBytes }: RetrievalConfig,
  log: Logger,
): WarmableRetrieval {
  const { manifest, dir } = bundle;
  const loadEncoder = async () => {
    await files.verify(dir, filesOf(manifest, ['encoder']));
    return loadQueryEncoder(bundle, { threads });
  };
  return createRetrieval(withSideIndexes(store, manifest.context?.fingerprint), {
    queryLines,
    indexCacheBytes,
    onLeftOut: leftOutReporter(log),
    onUncoded: (repo, reason) =>
      log.warn({ repo, reason }, 'no memory for the codes of an index: searches take longer'),
    dense: manifest.context && { threads, loadEncoder },
  });
}

/** What a manifest says of the model as it is served. */
export const servedBy = ({ fingerprint, context, llm: { spec } }: Manifest) => ({
  fingerprint,
  contextFingerprint: context?.fingerprint,
  hidden: spec.hidden,
  softPerChunk: softPerChunkOf({ context }),
  eosIds: spec.eosIds,
});

interface CandidateModels {
  readonly config: GatewayConfig;
  /** Of the bundle that this gateway was started with. */
  readonly manifest: Manifest;
  readonly tokenizer: Tokenizer;
  readonly store: Store;
  readonly keys: ApiKeys;
  readonly security: RpcSecurity;
  readonly log: Logger;
}

/** Opens the bundles of rollouts. Both functions throw ServingError for a bundle that cannot take part. */
export function candidateModels({ config, manifest: stable, tokenizer, store, keys, security, log }: CandidateModels) {
  const open = async (dir: string): Promise<Bundle> => {
    const bundle = await openBundle(dir, config);
    assertSameTokenizer(stable, bundle);
    return bundle;
  };
  const openModel = async ({ bundle: dir, fingerprint, indexer: address }: RolloutState): Promise<CandidateModel> => {
    const bundle = await open(dir);
    const { manifest } = bundle;
    if (manifest.fingerprint !== fingerprint) {
      const message = `${dir} has fingerprint ${manifest.fingerprint} here, and the rollout is of ${fingerprint}`;
      throw new ServingError('fingerprint_mismatch', message);
    }
    const indexer = address === '' ? undefined : connectIndexer(address, security);
    const retrieval = retrievalOf(bundle, store, new FileGuard(log), config, log);
    const closing = new AbortController();
    const warming = keepIndexesWarm(store, retrieval, keys, closing.signal);
    return {
      ...servedBy(manifest),
      tokenizer,
      retrieval,
      indexer,
      close: async () => {
        closing.abort();
        await warming;
        indexer?.close();
      },
    };
  };
  const inspectBundle = async (dir: string) => (await open(dir)).manifest.fingerprint;
  return { openModel, inspectBundle };
}

/**
 * Clients may send token ids and get them, and /tokenize speaks of them: two bundles side by side must mean the same.
 * @throws ServingError config_invalid
 */
function assertSameTokenizer(stable: Manifest, { dir, manifest }: Bundle): void {
  const own = ({ tokenizer }: Manifest) => tokenizer.files.filter(({ path }) => !path.includes('/'));
  const textOf = (of: Manifest) => JSON.stringify(own(of).map(({ path, sha256 }) => [path, sha256]));
  if (textOf(stable) === textOf(manifest)) return;
  const message = `${dir} has another tokenizer than the bundle that is served: install it as a system of its own`;
  throw new ServingError('config_invalid', message);
}
