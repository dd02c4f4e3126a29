/** Retrieval: finds the best chunks of a repository for the text around a cursor, with what a prompt needs of them. */
import { posix } from 'node:path';
import { once } from '../../async/once.ts';
import { DEFAULT_RETRIEVER, needsEmbeddings, type RetrieverName } from '../retriever-name.ts';
import { assertRepoKey } from '../store/repo-key.ts';
import { contextFingerprint, fileIdOf, idAt, idsWithin } from '../store/row.ts';
import type { ChunkContent, ChunkEntry, IndexHead, LeftOutRow, RowPart, RowRead, Store } from '../store/store.ts';
import { DenseScorer } from './dense.ts';
import { ATTEMPTS, IndexCache, incomplete, type LoadedIndex, unstable } from './index-cache.ts';
import { type LiveHit, LivePlaces } from './live.ts';
import { type CursorQuery, cursorQuery } from './query.ts';
import type { QueryEncoder } from './query-encoder.ts';
import { rank } from './rank.ts';
import { DistinctChunks } from './sameness.ts';
import type { Hit } from './top-hits.ts';

export interface RetrievalQuery {
  readonly repo: string;
  /** The file being edited, relative to the repository's root. Its own chunks are left out. */
  readonly path?: string;
  /** Files of which the client has sent a newer text: their chunks are left out, too. */
  readonly replaced?: readonly string[];
  /** Chunks of what the client has sent, best first, which take their places among those that are found. */
  readonly live?: readonly LiveHit[];
  /** Text before the cursor. */
  readonly before: string;
  /** Text after the cursor. */
  readonly after: string;
  readonly topK: number;
  /** By default the index's own, or jaccard if that needs an encoder and there is none. */
  readonly retriever?: RetrieverName;
  /** The part of the chunks that is needed; both if it is not given. */
  readonly part?: RowPart;
  /** The most files whose own vectors are wanted: those of the chunks that are found. None if it is not given. */
  readonly files?: number;
}

/** A file of which chunks were found. */
export interface RetrievedFile {
  readonly path: string;
  /** [hidden], the projected mean of the encodings of all its chunks. */
  readonly vector: Float32Array;
}

export interface RetrievedChunk extends Omit<ChunkEntry, 'tokens'>, Omit<ChunkContent, 'embedding'> {
  /** Higher is better. Its unit depends on the retriever. */
  readonly score: number;
  /** It is one of the client's own: see {@link RetrievalQuery.live}. */
  readonly isLive?: boolean;
}

type FetchedChunk = RetrievedChunk & Pick<ChunkEntry, 'tokens'>;

export interface Retrieved {
  readonly indexVersion: string;
  readonly retriever: RetrieverName;
  /** Identifies the encoder and projector that made the vectors, and must equal that of the bundle to use them. */
  readonly fingerprint: string;
  /** Best first; fewer than asked for if fewer have anything in common with the query. */
  readonly chunks: readonly RetrievedChunk[];
  /**
   * The files of these chunks, that of the best chunk first, as many as were wanted; undefined if the index holds no
   * vectors of files.
   */
  readonly files?: readonly RetrievedFile[] | undefined;
  /** Why better chunks than the last one of these are missing; undefined if none is. */
  readonly leftOut?: 'damaged' | 'too_large' | undefined;
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
  /** Told of rows that were left out, again and again of the same one. */
  readonly onLeftOut?: (repo: string, row: LeftOutRow) => void;
  /** Told of a large index that is searched as smaller ones are, since there is no memory for its codes. */
  readonly onUncoded?: (repo: string, reason: string) => void;
}

/**
 * The first search looks for this many times the depth asked for, so that a near-copy or two do not need a second one.
 */
const SPARE = 2;
/**
 * Rows larger than this are left out, in bytes: a chunk of 1,000 lines of code has 40 KiB, one of ten lines that were
 * cut at 4,096 characters has as much. With k soft tokens per chunk it is k times as much, and so is what follows.
 */
const ROW_BYTES = 64 * 1024;
/**
 * What all entries of one retrieval may have together, and all contents, in bytes. A hundred entries of code have 200
 * KiB, a hundred vectors of 4,096 values have 800 KiB, no prompt holds as much text, and a store gives it in a few ms.
 */
const ENTRIES_BYTES = 512 * 1024;
const CONTENTS_BYTES = 1024 * 1024;
/** Searches go on to at most this many times the depth asked for: a repository may hold thousands of near-copies. */
const DEEPEST = 8;

export function createRetrieval(
  store: Store,
  { queryLines, dense, indexCacheBytes, onLeftOut = () => {}, onUncoded = () => {} }: RetrievalOptions,
): WarmableRetrieval {
  const scorer = once(() => DenseScorer.load({ threads: dense?.threads ?? 1 }));
  const limitBytes = indexCacheBytes ?? Number.MAX_SAFE_INTEGER;
  const cache = new IndexCache(store, { scorer, limitBytes, onLeftOut, onUncoded });
  const encoder = dense && once(dense.loadEncoder);

  async function search(
    asked: RetrievalQuery,
    signal: AbortSignal,
    onRetriever?: (retriever: RetrieverName) => void,
  ): Promise<Retrieved> {
    const { repo, topK } = asked;
    const query = cursorQuery(asked.before, asked.after, queryLines);
    const path = asked.path === undefined ? undefined : posix.normalize(asked.path);
    let index = await cache.get(repo, signal);
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const { head } = index;
      const retriever = asked.retriever ?? ownRetriever(head, encoder !== undefined);
      onRetriever?.(retriever);
      const rows = new RowReader(store, repo, index, asked.part, signal);
      const chunks = await bestChunks({
        topK,
        query,
        live: new LivePlaces(retriever === 'none' ? [] : (asked.live ?? []), retriever === 'jaccard'),
        find: (depth) => {
          signal.throwIfAborted(); // nobody waits for the result any more
          const { replaced = [] } = asked;
          return rank(index, { repo, retriever, query, topK, depth, path, replaced, encoder, signal });
        },
        read: (hits) => {
          signal.throwIfAborted();
          return rows.read(hits);
        },
        spent: () => rows.spent,
        textsOf: (chunks) => rows.textsOf(chunks),
      });
      const files = await rows.filesOf(chunks ?? [], asked.files ?? 0);
      for (const row of rows.leftOut) onLeftOut(repo, row);
      const { version } = head;
      if (chunks) {
        const fingerprint = contextFingerprint(head.fingerprint);
        return { indexVersion: version, retriever, fingerprint, chunks, ...files, ...rows.report };
      }
      if ((await store.head(repo))?.version === version) throw incomplete(repo, version);
      index = await cache.load(repo, signal); // the version was swept meanwhile: continue with its successor
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
  readonly live: LivePlaces;
  /** The best `depth` hits: those of a deeper search begin with those of a search that is less deep. */
  readonly find: (depth: number) => Promise<readonly Hit[] | undefined>;
  /** The rows of hits, in their order, without those that the store holds and cannot give. */
  readonly read: (hits: readonly Hit[]) => Promise<FetchedChunk[] | undefined>;
  /** Whether no row can be read any more. */
  readonly spent: () => boolean;
  /** Their texts by id, where they can be had. */
  readonly textsOf: (chunks: readonly FetchedChunk[]) => Promise<ReadonlyMap<string, string>>;
}

/**
 * The best chunks that repeat neither the text around the cursor nor one another. One search mostly suffices. If it
 * finds too many copies, deeper searches follow, up to a bound. Undefined if the store has dropped one of the chunks.
 */
async function bestChunks({
  topK,
  query,
  live,
  find,
  read,
  spent,
  textsOf,
}: Selection): Promise<RetrievedChunk[] | undefined> {
  const best = new DistinctChunks<FetchedChunk>(topK);
  let seen = 0;
  let rank = 0;
  const add = (hits: readonly LiveHit[]) => {
    for (const hit of hits) best.add(asFetched(hit));
  };
  for (let depth = SPARE * topK; ; depth *= 2) {
    const hits = await find(depth);
    if (!hits) return undefined;
    while (best.missing > 0 && seen < hits.length && !spent()) {
      const next = hits.slice(seen, seen + (seen === 0 ? topK : 2 * best.missing));
      const chunks = await read(next);
      if (!chunks) return undefined;
      const texts = await textsOf(chunks.filter((chunk) => query.mayRepeat(chunk)));
      for (const chunk of chunks) {
        const text = texts.get(chunk.id);
        add(live.before(chunk.score, rank++));
        if (text === undefined || !query.repeats(text)) best.add(chunk);
      }
      seen += next.length;
    }
    if (hits.length < depth || depth >= DEEPEST * topK || spent()) add(live.rest());
    if (best.missing === 0 || hits.length < depth || depth >= DEEPEST * topK || spent()) {
      return best.kept.map(withoutTokens);
    }
  }
}

const asFetched = (hit: LiveHit): FetchedChunk => ({ ...hit, vector: NO_VECTOR, isLive: true });
const NO_VECTOR = new Float32Array(0);
/** Sessions keep chunks as they are found. */
const withoutTokens = ({ tokens: _, ...chunk }: FetchedChunk): RetrievedChunk => chunk;

/** Live hits alone, where there is no index to be searched. */
export const onlyLive = (hits: readonly LiveHit[]) => hits.map((hit) => withoutTokens(asFetched(hit)));

/** Reads the rows of one retrieval, which are bounded in bytes. */
class RowReader {
  /** Rows that are there and were left out. */
  readonly leftOut: LeftOutRow[] = [];
  readonly #store: Store;
  readonly #repo: string;
  readonly #index: LoadedIndex;
  readonly #part: RowPart | undefined;
  readonly #signal: AbortSignal;
  /** Soft tokens of one chunk. */
  readonly #perChunk: number;
  /** Bytes that may still be read. */
  readonly #left: { entries: number; contents: number };

  constructor(store: Store, repo: string, index: LoadedIndex, part: RowPart | undefined, signal: AbortSignal) {
    this.#store = store;
    this.#repo = repo;
    this.#index = index;
    this.#part = part;
    this.#signal = signal;
    this.#perChunk = index.head.softPerChunk ?? 1;
    this.#left = { entries: ENTRIES_BYTES, contents: CONTENTS_BYTES * this.#perChunk };
  }

  /** Why chunks are missing. */
  get report(): Pick<Retrieved, 'leftOut'> {
    if (this.leftOut.length === 0) return {};
    return { leftOut: this.leftOut.some(({ reason }) => reason === 'damaged') ? 'damaged' : 'too_large' };
  }

  /** Whether a row was left out because there were no bytes left. */
  get spent(): boolean {
    return this.leftOut.some(({ reason }) => reason === 'later');
  }

  /** Undefined if the store has dropped one of them. */
  async read(hits: readonly Hit[]): Promise<FetchedChunk[] | undefined> {
    const { head, ids } = this.#index;
    const wanted = hits.map((hit) => idAt(ids, hit.ordinal));
    const before = new Set(this.leftOut);
    const [entries, contents] = await Promise.all([
      this.#store.entries(this.#repo, wanted, this.#within('entries')),
      this.#store.contents(this.#repo, head.fingerprint, wanted, { ...this.#within('contents'), part: this.#part }),
    ]);
    const missing = new Set(this.leftOut.filter((row) => !before.has(row)).map(({ id }) => id));
    const chunks: FetchedChunk[] = [];
    for (const [i, { score }] of hits.entries()) {
      const [id, entry, content] = [wanted[i]!, entries[i], contents[i]];
      if (missing.has(id)) continue;
      if (!entry || !content) return undefined;
      const { path, startLine, endLine, tokens } = entry;
      const { text, vector } = content; // the embedding is left out, because sessions keep these chunks
      const values = head.hidden * this.#perChunk;
      if (this.#part !== 'text' && vector.length !== values) {
        const why = `the vector of chunk ${id} has ${vector.length} values instead of ${values}`;
        this.leftOut.push({ id, reason: 'damaged', why });
        continue;
      }
      chunks.push({ id, path, startLine, endLine, tokens, score, text, vector });
    }
    return chunks;
  }

  /** The vectors of at most `most` files that chunks are of, as far as they can be had, in the order of the chunks. */
  async filesOf(chunks: readonly RetrievedChunk[], most: number): Promise<Pick<Retrieved, 'files'>> {
    const { head, ids, lexical } = this.#index;
    if (most === 0 || head.fileRows === undefined) return {};
    const paths = new Set(chunks.filter(({ isLive }) => !isLive).map(({ path }) => path));
    const wanted = [...paths].slice(0, most).flatMap((path) => {
      const range = lexical.rangeOf(path);
      return range ? [{ path, id: fileIdOf(path, idsWithin(ids, range.start, range.end)) }] : [];
    });
    const rowIds = wanted.map(({ id }) => id);
    const read: RowRead = { ...this.#within('contents'), part: 'vectors' };
    const contents = await this.#store.contents(this.#repo, head.fingerprint, rowIds, read);
    const files = wanted.flatMap(({ path, id }, i) => {
      const { vector } = contents[i] ?? {};
      if (vector === undefined) return [];
      if (vector.length === head.hidden) return [{ path, vector }];
      const why = `the vector of file ${id} has ${vector.length} values instead of ${head.hidden}`;
      this.leftOut.push({ id, reason: 'damaged', why });
      return [];
    });
    return { files };
  }

  /** The texts of chunks by id. If only vectors have been read, texts are read now, as far as they can be had. */
  async textsOf(chunks: readonly FetchedChunk[]): Promise<ReadonlyMap<string, string>> {
    if (this.#part !== 'vectors' || chunks.length === 0) return new Map(chunks.map(({ id, text }) => [id, text]));
    const ids = chunks.map(({ id }) => id);
    const read: RowRead = { ...this.#within('contents'), part: 'text', onLeftOut: () => {} };
    const contents = await this.#store.contents(this.#repo, this.#index.head.fingerprint, ids, read);
    return new Map(contents.flatMap((content, i) => (content ? [[ids[i]!, content.text]] : [])));
  }

  #within(kind: 'entries' | 'contents'): RowRead {
    const left = this.#left;
    return {
      rowBytes: ROW_BYTES * this.#perChunk,
      bytes: left[kind],
      signal: this.#signal,
      onLeftOut: (row) => this.leftOut.push(row),
      onBytes: (bytes) => {
        left[kind] -= bytes;
      },
    };
  }
}

/** Lets this caller stop waiting. A load goes on, for callers that share it and for later ones. */
function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    signal.addEventListener('abort', abort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}
