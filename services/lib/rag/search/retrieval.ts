/** Retrieval: finds the best chunks of a repository for the text around a cursor, with what a prompt needs of them. */
import { posix } from 'node:path';
import { once } from '../../async/once.ts';
import { DEFAULT_RETRIEVER, needsEmbeddings, type RetrieverName } from '../retriever-name.ts';
import { assertRepoKey } from '../store/repo-key.ts';
import { contextFingerprint, idAt } from '../store/row.ts';
import type { ChunkContent, ChunkEntry, IndexHead, Store } from '../store/store.ts';
import { DenseScorer } from './dense.ts';
import { ATTEMPTS, IndexCache, incomplete, type LoadedIndex, unstable } from './index-cache.ts';
import { type CursorQuery, cursorQuery } from './query.ts';
import type { QueryEncoder } from './query-encoder.ts';
import { rank } from './rank.ts';
import { DistinctChunks } from './sameness.ts';
import type { Hit } from './top-hits.ts';

export interface RetrievalQuery {
  readonly repo: string;
  /** The file being edited, relative to the repository's root. Its own chunks are left out. */
  readonly path?: string;
  /** Text before the cursor. */
  readonly before: string;
  /** Text after the cursor. */
  readonly after: string;
  readonly topK: number;
  /** By default the index's own, or jaccard if that needs an encoder and there is none. */
  readonly retriever?: RetrieverName;
}

interface RetrievedChunk extends Omit<ChunkEntry, 'tokens'>, Omit<ChunkContent, 'embedding'> {
  /** Higher is better. Its unit depends on the retriever. */
  readonly score: number;
}

type FetchedChunk = RetrievedChunk & Pick<ChunkEntry, 'tokens'>;

export interface Retrieved {
  readonly indexVersion: string;
  readonly retriever: RetrieverName;
  /** Identifies the encoder and projector that made the vectors, and must equal that of the bundle to use them. */
  readonly fingerprint: string;
  /** Best first; fewer than asked for if fewer have anything in common with the query. */
  readonly chunks: readonly RetrievedChunk[];
}

export interface Retrieval {
  /**
   * @param onRetriever told which retriever searches, as soon as that is known: some take longer than others.
   * @throws ServingError repo_not_found, store_unavailable, store_invalid, index_too_large; invalid_request for a bad
   *   repository name, or a retriever that this index or process cannot serve; the signal's reason.
   */
  retrieve(
    query: RetrievalQuery,
    signal: AbortSignal,
    onRetriever?: (retriever: RetrieverName) => void,
  ): Promise<Retrieved>;
}

/** Retrieval that can load an index before it is asked for. */
export interface WarmableRetrieval extends Retrieval {
  /**
   * Loads a repository's index, or its new version, unless more than half of the memory is taken.
   * @throws ServingError store_unavailable, store_invalid, index_too_large.
   */
  warm(repo: string): Promise<void>;
}

export interface RetrievalOptions {
  /** Non-blank lines before the cursor that make up the query, with half as many after it. */
  readonly queryLines: number;
  /** The encoder for dense retrieval, loaded when first asked for; absent if the model has none. */
  readonly dense?: { readonly loadEncoder: () => Promise<QueryEncoder>; readonly threads: number };
  /** Memory for all indexes together; unlimited if not given. */
  readonly indexCacheBytes?: number;
}

/**
 * The first search looks for this many times the depth asked for, so that a near-copy or two do not need a second one.
 */
const SPARE = 2;
/** Searches go on to at most this many times the depth asked for: a repository may hold thousands of near-copies. */
const DEEPEST = 8;

export function createRetrieval(
  store: Store,
  { queryLines, dense, indexCacheBytes = Number.MAX_SAFE_INTEGER }: RetrievalOptions,
): WarmableRetrieval {
  const scorer = once(() => DenseScorer.load({ provider: 'cpu', threads: dense?.threads ?? 1 }));
  const cache = new IndexCache(store, scorer, indexCacheBytes);
  const encoder = dense && once(dense.loadEncoder);

  async function search(
    asked: RetrievalQuery,
    signal: AbortSignal,
    onRetriever?: (retriever: RetrieverName) => void,
  ): Promise<Retrieved> {
    const { repo, topK } = asked;
    const query = cursorQuery(asked.before, asked.after, queryLines);
    const path = asked.path === undefined ? undefined : posix.normalize(asked.path);
    let index = await cache.get(repo);
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const { head } = index;
      const retriever = asked.retriever ?? ownRetriever(head, encoder !== undefined);
      onRetriever?.(retriever);
      const chunks = await bestChunks({
        topK,
        query,
        find: (depth) => {
          signal.throwIfAborted(); // nobody waits for the result any more
          return rank(index, { repo, retriever, query, topK, depth, path, encoder });
        },
        read: (hits) => {
          signal.throwIfAborted();
          return fetchChunks(store, repo, index, hits);
        },
      });
      const { version } = head;
      if (chunks) {
        return { indexVersion: version, retriever, fingerprint: contextFingerprint(head.fingerprint), chunks };
      }
      if ((await store.head(repo))?.version === version) throw incomplete(repo, version);
      index = await cache.load(repo); // the version was swept meanwhile: continue with its successor
    }
    throw unstable(repo);
  }

  return {
    async retrieve(query, signal, onRetriever) {
      assertRepoKey(query.repo);
      signal.throwIfAborted();
      return unlessAborted(search(query, signal, onRetriever), signal);
    },
    warm: (repo) => cache.warm(repo),
  };
}

/**
 * The retriever of an index for requests that name none. If that compares embeddings, and this process has no encoder,
 * the default one searches: the client has not asked for anything that it could mend.
 */
function ownRetriever({ retriever = DEFAULT_RETRIEVER }: IndexHead, encodes: boolean): RetrieverName {
  return needsEmbeddings(retriever) && !encodes ? DEFAULT_RETRIEVER : retriever;
}

interface Selection {
  readonly topK: number;
  readonly query: CursorQuery;
  /** The best `depth` hits: those of a deeper search begin with those of a search that is less deep. */
  readonly find: (depth: number) => Promise<readonly Hit[] | undefined>;
  readonly read: (hits: readonly Hit[]) => Promise<FetchedChunk[] | undefined>;
}

/**
 * The best chunks that repeat neither the text around the cursor nor one another. One search mostly suffices. If it
 * finds too many copies, deeper searches follow, up to a bound. Undefined if the store has dropped one of the chunks.
 */
async function bestChunks({ topK, query, find, read }: Selection): Promise<RetrievedChunk[] | undefined> {
  const best = new DistinctChunks<FetchedChunk>(topK);
  let seen = 0;
  for (let depth = SPARE * topK; ; depth *= 2) {
    const hits = await find(depth);
    if (!hits) return undefined;
    while (best.missing > 0 && seen < hits.length) {
      const next = hits.slice(seen, seen + (seen === 0 ? topK : 2 * best.missing));
      const chunks = await read(next);
      if (!chunks) return undefined;
      for (const chunk of chunks) if (!query.repeats(chunk.text)) best.add(chunk);
      seen += next.length;
    }
    if (best.missing === 0 || hits.length < depth || depth >= DEEPEST * topK) {
      return best.kept.map(({ tokens: _, ...chunk }) => chunk); // sessions keep these chunks
    }
  }
}

/** Undefined if the store has dropped one of them. */
async function fetchChunks(
  store: Store,
  repo: string,
  { head, ids }: LoadedIndex,
  hits: readonly Hit[],
): Promise<FetchedChunk[] | undefined> {
  const wanted = hits.map((hit) => idAt(ids, hit.ordinal));
  const [entries, contents] = await Promise.all([
    store.entries(repo, wanted),
    store.contents(repo, head.fingerprint, wanted),
  ]);
  const chunks: FetchedChunk[] = [];
  for (const [i, { score }] of hits.entries()) {
    const entry = entries[i];
    const content = contents[i];
    if (!entry || !content) return undefined;
    const { id, path, startLine, endLine, tokens } = entry;
    const { text, vector } = content; // the embedding is left out, because sessions keep these chunks
    chunks.push({ id, path, startLine, endLine, tokens, score, text, vector });
  }
  return chunks;
}

/** Lets this caller stop waiting. A load goes on, for callers that share it and for later ones. */
function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    signal.addEventListener('abort', abort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}
