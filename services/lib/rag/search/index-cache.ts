/**
 * Keeps indexes in memory, one per repository in use, each with the version that it was built from. A request looks up
 * the current version (one small read). If there is a newer one, the request is served from the old index while the new
 * one is built beside it, in slices that let the event loop go on. Embeddings are loaded when dense retrieval is first
 * asked for. What is loaded and what is being loaded stay below one limit (see load-queue.ts), of which each tenant has
 * a share (see tenant-cache.ts).
 */
import { LRUCache } from 'lru-cache';
import { inTurns, Turns } from '../../async/turns.ts';
import { ServingError } from '../../process/errors.ts';
import { nameOf } from '../store/repo-key.ts';
import { idAt } from '../store/row.ts';
import type { IndexSnapshot, LeftOutRow, RowRead, Store } from '../store/store.ts';
import { TenantCache } from '../store/tenant-cache.ts';
import { CodedIndex, codedBytes, isCoded } from './coded-index.ts';
import { DenseIndex, type DenseScorer, denseBytes, type EmbeddingIndex } from './dense.ts';
import type { InvertedIndex } from './inverted-index.ts';
import { InvertedIndexBuilder } from './inverted-index-builder.ts';
import { type Loading, LoadQueue } from './load-queue.ts';

export interface LoadedIndex extends IndexSnapshot {
  readonly lexical: InvertedIndex;
  /**
   * The embeddings, loaded once and then kept with this version; undefined if the store has dropped rows of this
   * version.
   * @param dim values of an embedding. Embeddings of another width are left out: they are never found.
   * @throws ServingError store_unavailable, store_invalid, index_too_large, saturated; the signal's reason.
   */
  dense(dim: number, signal: AbortSignal): Promise<EmbeddingIndex | undefined>;
}

/** Rows that are read at a time: at first, and at most. */
const FIRST_SLICE = 64;
const SLICE = 512;
/**
 * Bytes that are read at a time, and of one row: 256 identifiers have 2 KiB in code, and 64 KiB are more than anything
 * that was written by hand.
 */
const SLICE_READ: RowRead = { bytes: 256 * 1024, rowBytes: 64 * 1024 };
/** A version that is swept while it is read is given up for its successor, at most so many times in a row. */
export const ATTEMPTS = 3;

/** Memory that a chunk takes at least, in bytes: its id, and its place in the order. */
const LEAST_CHUNK_BYTES = 32 + 20;
/** Versions that turned out to be too large and are remembered. */
const MOST_TOO_LARGE = 1_024;

interface CachedIndex {
  readonly index: LoadedIndex;
  /** Memory that the index takes, its embeddings included once they are loaded. */
  readonly bytes: number;
}

export interface IndexCacheOptions {
  /** Called when the first embeddings are loaded. */
  readonly scorer: () => Promise<DenseScorer>;
  /** Memory for all indexes together, in bytes. */
  readonly limitBytes: number;
  /** Told of rows without which an index is built. */
  readonly onLeftOut: (repo: string, row: LeftOutRow) => void;
  /** Told of a large index that is searched as smaller ones are, since there is no memory for its codes. */
  readonly onUncoded: (repo: string, reason: string) => void;
}

export class IndexCache {
  readonly #store: Store;
  readonly #options: IndexCacheOptions;
  /** By repository. */
  readonly #kept: TenantCache<CachedIndex>;
  readonly #loads: LoadQueue<LoadedIndex | EmbeddingIndex | undefined>;
  /** Versions that turned out to be too large. They are remembered because finding it out takes seconds. */
  readonly #tooLarge = new LRUCache<string, { readonly version: string; readonly error: ServingError }>({
    max: MOST_TOO_LARGE,
  });

  constructor(store: Store, options: IndexCacheOptions) {
    const { limitBytes } = options;
    this.#store = store;
    this.#options = options;
    const kept = new TenantCache<CachedIndex>(limitBytes);
    this.#kept = kept;
    this.#loads = new LoadQueue({
      limitBytes,
      get keptBytes() {
        return kept.bytes;
      },
      evictFor: (tenant, wanted, key) => kept.evictFor(tenant, wanted, key),
    });
  }

  /**
   * The index to search now: that of the current version or, while that is being loaded, of the last known one.
   * @throws ServingError repo_not_found, store_unavailable, store_invalid, index_too_large, saturated; the signal's
   *   reason.
   */
  async get(repo: string, signal: AbortSignal): Promise<LoadedIndex> {
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
      return this.load(repo, signal);
    }
    // If this load fails, the next request tries again. The error is reported once there is no old version to serve.
    if (kept.index.head.version !== head.version && !tooLarge) this.load(repo, signal).catch(() => {});
    return kept.index;
  }

  /**
   * Loads the current version before it is asked for, unless more than half of the memory is taken: the other half is
   * for indexes that are asked for. A repository that is loaded for the first time drops no other one.
   * @throws ServingError store_unavailable, store_invalid, index_too_large, saturated.
   */
  async warm(repo: string): Promise<void> {
    const known = this.#kept.peek(repo)?.index.head.version;
    if (known === undefined && this.#kept.bytes > this.#options.limitBytes / 2) return;
    const head = await this.#store.head(repo);
    if (!head || head.version === known || this.#tooLargeOf(repo, head.version)) return;
    await this.#load(repo, known !== undefined);
  }

  /** Loads the current version. Calls at the same time share one load. */
  load(repo: string, signal: AbortSignal): Promise<LoadedIndex> {
    return this.#load(repo, true, signal);
  }

  #load(repo: string, evicts: boolean, signal?: AbortSignal): Promise<LoadedIndex> {
    const run = async (loading: Loading) => {
      const index = await this.#read(repo, loading);
      const bytes = lexicalBytes(index);
      // An index that turns out larger than the limit, by an estimate that was too low, counts as the limit.
      await loading.reserve(Math.min(bytes, this.#options.limitBytes));
      this.#keep(repo, { index, bytes });
      return index;
    };
    return this.#loads.join(repo, { repo, evicts, run }, signal) as Promise<LoadedIndex>;
  }

  #keep(repo: string, kept: CachedIndex): void {
    this.#kept.set(repo, kept, Math.min(kept.bytes, this.#options.limitBytes));
  }

  #tooLargeOf(repo: string, version: string): ServingError | undefined {
    const known = this.#tooLarge.get(repo);
    return known?.version === version ? known.error : undefined;
  }

  async #read(repo: string, loading: Loading): Promise<LoadedIndex> {
    let seen = '';
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      loading.signal.throwIfAborted();
      // What is known before anything is read is the number of chunks.
      const head = await this.#store.head(repo);
      if (!head) throw notFound(repo);
      await this.#reserve(repo, head.version, head.chunks * LEAST_CHUNK_BYTES, loading);
      const snapshot = await this.#store.snapshot(repo);
      if (!snapshot) throw notFound(repo);
      // If the version is still the current one, its missing entries were not swept but evicted or lost.
      if (snapshot.head.version === seen) throw incomplete(repo, seen);
      seen = snapshot.head.version;
      const lexical = await this.#lexical(repo, snapshot, loading);
      if (lexical) return this.#loaded(repo, snapshot, lexical);
    }
    throw unstable(repo);
  }

  #loaded(repo: string, snapshot: IndexSnapshot, lexical: InvertedIndex): LoadedIndex {
    let loaded: EmbeddingIndex | undefined;
    const index: LoadedIndex = {
      ...snapshot,
      lexical,
      dense: async (dim, signal) => {
        if (loaded?.dim === dim) return loaded;
        const run = (loading: Loading) => this.#dense(repo, index, dim, loading);
        const { version } = snapshot.head;
        const load = this.#loads.join(`${repo} ${version} ${dim}`, { repo, evicts: true, extends: repo, run }, signal);
        loaded = (await load) as EmbeddingIndex | undefined;
        return loaded;
      },
    };
    return index;
  }

  /** @throws ServingError index_too_large, saturated; the signal's reason. */
  async #reserve(repo: string, version: string, bytes: number, loading: Loading): Promise<void> {
    const { limitBytes } = this.#options;
    if (bytes > limitBytes) {
      const error = tooLarge(repo, limitBytes);
      this.#tooLarge.set(repo, { version, error });
      throw error;
    }
    await loading.reserve(bytes);
  }

  /** Undefined if the version was swept meanwhile. */
  async #lexical(repo: string, snapshot: IndexSnapshot, loading: Loading): Promise<InvertedIndex | undefined> {
    const { version, chunks } = snapshot.head;
    const builder = new InvertedIndexBuilder();
    const read = this.#inSlices(repo, snapshot, loading.signal, (ids, how) => this.#store.entries(repo, ids, how));
    const turns = new Turns();
    for await (const entries of read) {
      if (!entries) return undefined;
      for (const entry of entries) {
        if (entry) builder.add(entry);
        else builder.skip();
        if (turns.over) await turns.next();
      }
      // What the next slice holds is not known: it is taken to be like those before it.
      const perChunk = builder.bytes / Math.max(1, builder.size);
      const next = Math.min(SLICE, chunks - builder.size);
      await this.#reserve(repo, version, snapshot.ids.byteLength + builder.bytes + next * perChunk, loading);
      await turns.next();
    }
    return inTurns(builder.build(), loading.signal);
  }

  /** Undefined if the version was swept meanwhile. */
  async #dense(repo: string, index: LoadedIndex, dim: number, loading: Loading): Promise<EmbeddingIndex | undefined> {
    const { fingerprint } = index.head;
    this.#kept.get(repo); // it is in use: others are evicted first
    const { dense, bytes } = await this.#emptyDense(repo, index, dim, loading);
    let ordinal = 0;
    const read = this.#inSlices(repo, index, loading.signal, (ids, how) =>
      this.#store.contents(repo, fingerprint, ids, { ...how, part: 'vectors' }),
    );
    const turns = new Turns();
    for await (const contents of read) {
      if (!contents) return undefined;
      for (const content of contents) {
        if (content?.embedding?.length === dim) dense.set(ordinal, content.embedding);
        ordinal++;
        if (turns.over) await turns.next();
      }
      await turns.next();
    }
    await dense.finish(loading.signal);
    const kept = this.#kept.peek(repo);
    if (kept?.index === index) this.#keep(repo, { index, bytes: kept.bytes + bytes });
    return dense;
  }

  /** An index for embeddings that are still to come, and the memory that is reserved for it, in bytes. */
  async #emptyDense(repo: string, index: LoadedIndex, dim: number, loading: Loading) {
    const { chunks } = index.head;
    const { limitBytes, scorer, onUncoded } = this.#options;
    const reserve = async (bytes: number) => {
      if (lexicalBytes(index) + bytes > limitBytes) throw tooLarge(repo, limitBytes);
      await loading.reserve(bytes);
      return bytes;
    };
    if (isCoded(chunks, dim)) {
      const bytes = await reserve(codedBytes(chunks, dim));
      try {
        return { dense: new CodedIndex(chunks, dim), bytes };
      } catch (error) {
        // WebAssembly takes its memory in one piece, with much more of the address space, which may be limited.
        if (!(error instanceof RangeError)) throw error;
        onUncoded(repo, error.message);
      }
    }
    const bytes = await reserve(denseBytes(chunks, dim));
    return { dense: new DenseIndex(await scorer(), chunks, dim), bytes };
  }

  /**
   * Reads all rows of a version, one slice after the other, each of which is bounded in rows and in bytes. A row that
   * is damaged or too large is left out: its place is empty. Where a row is not there any more, it gives undefined and
   * ends.
   */
  async *#inSlices<T>(
    repo: string,
    { head, ids }: IndexSnapshot,
    signal: AbortSignal,
    read: (ids: readonly string[], how: RowRead) => Promise<(T | undefined)[]>,
  ): AsyncGenerator<(T | undefined)[] | undefined> {
    let length = FIRST_SLICE;
    for (let start = 0; start < head.chunks; ) {
      signal.throwIfAborted();
      const wanted = Array.from({ length: Math.min(length, head.chunks - start) }, (_, i) => idAt(ids, start + i));
      const leftOut = new Map<string, LeftOutRow>();
      const found = await read(wanted, { ...SLICE_READ, signal, onLeftOut: (row) => leftOut.set(row.id, row) });
      const cut = wanted.findIndex((id) => leftOut.get(id)?.reason === 'later');
      if (cut === 0) throw unreadable(repo, wanted[0]!);
      const given = cut < 0 ? wanted : wanted.slice(0, cut);
      for (const [i, id] of given.entries()) {
        const row = leftOut.get(id);
        if (row) this.#options.onLeftOut(repo, row);
        else if (found[i] === undefined) return yield undefined;
      }
      yield found.slice(0, given.length);
      start += given.length;
      length = cut < 0 ? Math.min(SLICE, 2 * length) : given.length;
    }
  }
}

const lexicalBytes = ({ head, ids, lexical }: LoadedIndex) => ids.byteLength + head.chunks * lexical.bytesPerChunk;

const notFound = (repo: string) =>
  new ServingError('repo_not_found', `there is no index of ${nameOf(repo)}`, { param: 'repo' });

const tooLarge = (repo: string, limitBytes: number) =>
  new ServingError(
    'index_too_large',
    `the index of ${repo} takes more than ${limitBytes} bytes of memory (--index-cache-bytes)`,
  );

const unreadable = (repo: string, id: string) =>
  new ServingError('store_invalid', `the store reads no row of the index of ${repo} from chunk ${id} on`);

export const unstable = (repo: string) =>
  new ServingError('store_unavailable', `the index of ${repo} changes faster than it can be read`);

export const incomplete = (repo: string, version: string) =>
  new ServingError('store_invalid', `version ${version} of the index of ${repo} has lost chunks (were keys evicted?)`);
