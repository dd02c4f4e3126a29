/** One retrieval: the text around a cursor → the best chunks of the repository, with what a prompt needs of them. */
import { posix } from 'node:path';
import { ATTEMPTS, IndexCache, incomplete, type LoadedIndex, unstable } from './index-cache.ts';
import type { Hit } from './jaccard.ts';
import { queryTokens } from './query.ts';
import { idAt } from './row.ts';
import { type ChunkContent, type ChunkEntry, checkRepoName, type Store } from './store.ts';

export interface RetrievalQuery {
  readonly repo: string;
  /** The file being edited, relative to the repository's root: its own chunks are left out. */
  readonly path?: string;
  /** Text before the cursor. */
  readonly before: string;
  /** Text after the cursor. */
  readonly after: string;
  readonly topK: number;
  readonly retriever?: 'jaccard';
}

export interface RetrievedChunk extends Omit<ChunkEntry, 'tokens'>, ChunkContent {
  /** (0, 1] */
  readonly score: number;
}

export interface Retrieved {
  readonly indexVersion: string;
  /** Of the encoder and projector that made the vectors; to be compared with the bundle's. */
  readonly fingerprint: string;
  /** Best first; fewer than asked for where fewer have anything in common with the query. */
  readonly chunks: readonly RetrievedChunk[];
}

export interface Retrieval {
  /**
   * @throws ServingError repo_not_found, store_unavailable, store_invalid, invalid_request (a bad repository name);
   *   the signal's reason.
   */
  retrieve(query: RetrievalQuery, signal: AbortSignal): Promise<Retrieved>;
}

/** @param options.queryLines non-blank lines before the cursor that make the query; half as many after it. */
export function createRetrieval(store: Store, options: { readonly queryLines: number }): Retrieval {
  const cache = new IndexCache(store);

  async function search(query: RetrievalQuery): Promise<Retrieved> {
    const { repo, topK } = query;
    const tokens = queryTokens(query.before, query.after, options.queryLines);
    const path = query.path === undefined ? undefined : posix.normalize(query.path);
    let index = await cache.get(repo);
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const { version, fingerprint } = index.head;
      const chunks = await fetchChunks(store, repo, index, index.retriever.search(tokens, topK, path));
      if (chunks) return { indexVersion: version, fingerprint, chunks };
      const head = await store.head(repo);
      if (head?.version === version) throw incomplete(repo, version);
      index = await cache.load(repo); // the version was swept under us: on with its successor
    }
    throw unstable(repo);
  }

  return {
    async retrieve(query, signal) {
      checkRepoName(query.repo);
      signal.throwIfAborted();
      return unlessAborted(search(query), signal);
    },
  };
}

/** Undefined where the store has dropped one of them. */
async function fetchChunks(
  store: Store,
  repo: string,
  { head, ids }: LoadedIndex,
  hits: readonly Hit[],
): Promise<RetrievedChunk[] | undefined> {
  const wanted = hits.map((hit) => idAt(ids, hit.ordinal));
  const [entries, contents] = await Promise.all([
    store.entries(repo, wanted),
    store.contents(repo, head.fingerprint, wanted),
  ]);
  const chunks: RetrievedChunk[] = [];
  for (const [i, { score }] of hits.entries()) {
    const entry = entries[i];
    const content = contents[i];
    if (!entry || !content) return undefined;
    const { id, path, startLine, endLine } = entry;
    chunks.push({ id, path, startLine, endLine, score, ...content });
  }
  return chunks;
}

/** The work goes on for whoever shares it; this caller stops waiting. */
function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    signal.addEventListener('abort', abort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}
