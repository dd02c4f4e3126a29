/**
 * Keeps indexes in memory, one per repository in use, each with the version that it was built from. A request looks up
 * the current version (one small read). If there is a newer one, the request is served from the old index while the new
 * one is built beside it, in slices that let the event loop go on. Embeddings are loaded when dense retrieval is first
 * asked for.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { LRUCache } from 'lru-cache';
import { once } from '../../async/once.ts';
import { Turns } from '../../async/turns.ts';
import { ServingError } from '../../process/errors.ts';
import { idAt } from '../store/row.ts';
import type { IndexSnapshot, Store } from '../store/store.ts';
import { DenseIndex, type DenseScorer } from './dense.ts';
import type { InvertedIndex } from './inverted-index.ts';
import { InvertedIndexBuilder } from './inverted-index-builder.ts';

export interface LoadedIndex extends IndexSnapshot {
  readonly lexical: InvertedIndex;
  /**
   * The embeddings, loaded once and then kept with this version; undefined if the store has dropped rows of this
   * version.
   * @throws ServingError store_unavailable, store_invalid.
   */
  dense(): Promise<DenseIndex | undefined>;
}

/** Entries that are read at a time. */
const SLICE = 512;
/** A version that is swept while it is read is given up for its successor, at most so many times in a row. */
export const ATTEMPTS = 3;

/** Memory for one value of an embedding: a float, and its level in 8 bits. */
const DENSE_BYTES = 5;

interface CachedIndex {
  readonly index: LoadedIndex;
  /** Memory that the index takes, its embeddings included once they are loaded. */
  readonly bytes: number;
}

export class IndexCache {
  readonly #store: Store;
  readonly #scorer: () => Promise<DenseScorer>;
  readonly #limitBytes: number;
  /** By repository. The index that was not used for the longest time is evicted first. */
  readonly #kept: LRUCache<string, CachedIndex>;
  readonly #loading = new Map<string, Promise<LoadedIndex>>();
  /** Versions that turned out to be too large. They are remembered because finding it out takes seconds. */
  readonly #tooLarge = new Map<string, { readonly version: string; readonly error: ServingError }>();

  /**
   * @param scorer called when the first embeddings are loaded.
   * @param limitBytes memory for all indexes together.
   */
  constructor(store: Store, scorer: () => Promise<DenseScorer>, limitBytes: number) {
    this.#store = store;
    this.#scorer = scorer;
    this.#limitBytes = limitBytes;
    this.#kept = new LRUCache({
      maxSize: limitBytes,
      // Whole numbers from 1 on are what the library takes. An index that turns out larger than the limit, by an
      // estimate that was too low or by its embeddings, counts as the limit: it evicts all others and is served alone.
      sizeCalculation: ({ bytes }) => Math.min(Math.max(1, Math.ceil(bytes)), limitBytes),
    });
  }

  /**
   * The index to search now: that of the current version or, while that is being loaded, of the last known one.
   * @throws ServingError repo_not_found, store_unavailable, store_invalid, index_too_large.
   */
  async get(repo: string): Promise<LoadedIndex> {
    const head = await this.#store.head(repo);
    if (!head) {
      this.#kept.delete(repo);
      this.#tooLarge.delete(repo);
      throw notFound(repo);
    }
    const kept = this.#kept.get(repo);
    const tooLarge = this.#tooLargeOf(repo, head.version);
    if (!kept) {
      if (tooLarge) throw tooLarge;
      return this.load(repo);
    }
    // If this load fails, the next request tries again. The error is reported once there is no old version to serve.
    if (kept.index.head.version !== head.version && !tooLarge) this.load(repo).catch(() => {});
    return kept.index;
  }

  /**
   * Loads the current version before it is asked for, unless more than half of the memory is taken: the other half is
   * for indexes that are asked for.
   * @throws ServingError store_unavailable, store_invalid, index_too_large.
   */
  async warm(repo: string): Promise<void> {
    const known = this.#kept.peek(repo)?.index.head.version;
    if (known === undefined && this.#kept.calculatedSize > this.#limitBytes / 2) return;
    const head = await this.#store.head(repo);
    if (head && head.version !== known && !this.#tooLargeOf(repo, head.version)) await this.load(repo);
  }

  /** Loads the current version. Calls at the same time share one load. */
  load(repo: string): Promise<LoadedIndex> {
    const shared = this.#loading.get(repo);
    if (shared) return shared;
    const loading = this.#read(repo)
      .then((index) => {
        this.#kept.set(repo, { index, bytes: lexicalBytes(index) });
        return index;
      })
      .finally(() => this.#loading.delete(repo));
    this.#loading.set(repo, loading);
    return loading;
  }

  #tooLargeOf(repo: string, version: string): ServingError | undefined {
    const known = this.#tooLarge.get(repo);
    return known?.version === version ? known.error : undefined;
  }

  /** @throws ServingError index_too_large. */
  #assertRoom(repo: string, version: string, bytes: number): void {
    if (bytes <= this.#limitBytes) return;
    const message = `the index of ${repo} takes more than ${this.#limitBytes} bytes of memory (--index-cache-bytes)`;
    const error = new ServingError('index_too_large', message);
    this.#tooLarge.set(repo, { version, error });
    throw error;
  }

  async #read(repo: string): Promise<LoadedIndex> {
    let seen = '';
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const snapshot = await this.#store.snapshot(repo);
      if (!snapshot) throw notFound(repo);
      // If the version is still the current one, its missing entries were not swept but evicted or lost.
      if (snapshot.head.version === seen) throw incomplete(repo, seen);
      seen = snapshot.head.version;
      const lexical = await this.#lexical(repo, snapshot);
      if (lexical) return { ...snapshot, lexical, dense: once(() => this.#dense(repo, snapshot)) };
    }
    throw unstable(repo);
  }

  /** Undefined if the version was swept meanwhile. */
  async #lexical(repo: string, snapshot: IndexSnapshot): Promise<InvertedIndex | undefined> {
    const builder = new InvertedIndexBuilder();
    for (const ids of slices(snapshot)) {
      const turns = new Turns();
      for (const entry of await this.#store.entries(repo, ids)) {
        if (!entry) return undefined;
        builder.add(entry);
        if (turns.over) await turns.next();
      }
      this.#assertRoom(repo, snapshot.head.version, builder.bytes);
      await nextTurn();
    }
    return builder.build(nextTurn);
  }

  /** Undefined if the version was swept meanwhile. */
  async #dense(repo: string, snapshot: IndexSnapshot): Promise<DenseIndex | undefined> {
    const { version, fingerprint, chunks } = snapshot.head;
    const scorer = await this.#scorer();
    let index: DenseIndex | undefined;
    let ordinal = 0;
    for (const ids of slices(snapshot)) {
      for (const content of await this.#store.contents(repo, fingerprint, ids)) {
        if (!content?.embedding) return undefined;
        if (!index) this.#assertRoom(repo, version, chunks * content.embedding.length * DENSE_BYTES);
        index ??= new DenseIndex(scorer, chunks, content.embedding.length);
        index.set(ordinal++, content.embedding);
      }
      await nextTurn();
    }
    const kept = this.#kept.peek(repo);
    if (kept && index && kept.index.head.version === version) {
      this.#kept.set(repo, { index: kept.index, bytes: kept.bytes + chunks * index.dim * DENSE_BYTES });
    }
    return index ?? new DenseIndex(scorer, 0, 1);
  }
}

const lexicalBytes = ({ head, ids, lexical }: LoadedIndex) => ids.byteLength + head.chunks * lexical.bytesPerChunk;

/** The ids of a version, one slice at a time. */
function* slices({ head, ids }: IndexSnapshot): Generator<string[]> {
  for (let start = 0; start < head.chunks; start += SLICE) {
    const length = Math.min(SLICE, head.chunks - start);
    yield Array.from({ length }, (_, i) => idAt(ids, start + i));
  }
}

const notFound = (repo: string) =>
  new ServingError('repo_not_found', `there is no index of ${repo}`, { param: 'repo' });

export const unstable = (repo: string) =>
  new ServingError('store_unavailable', `the index of ${repo} changes faster than it can be read`);

export const incomplete = (repo: string, version: string) =>
  new ServingError('store_invalid', `version ${version} of the index of ${repo} has lost chunks (were keys evicted?)`);
