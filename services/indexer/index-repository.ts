/**
 * One index run: sources → chunks → vectors → store. Chunks that are stored with this encoder's fingerprint are not
 * encoded again; readers see the new version when all of it is there, and the old one until then.
 */
import { createHash } from 'node:crypto';
import { ServingError } from '../lib/process/errors.ts';
import { metrics } from '../lib/process/metrics.ts';
import { type Chunk, type Chunking, chunkFile } from '../lib/rag/chunk.ts';
import type { ContextEncoder, EncodedChunk } from '../lib/rag/encode/encode.ts';
import { DEFAULT_RETRIEVER, type RetrieverName } from '../lib/rag/retriever-name.ts';
import { idAt, packIds } from '../lib/rag/store/row.ts';
import type { IndexHead, IndexSnapshot, IndexWriter, Store } from '../lib/rag/store/store.ts';
import { languageOf, noSkips, type SkipCounts } from './selection.ts';
import { type Sources, treeSources } from './sources.ts';

export interface IndexOptions extends Chunking {
  readonly maxFileBytes: number;
  /** What searches the index where a request does not say. The encoder must keep embeddings for dense and fused. */
  readonly retriever?: RetrieverName;
}

export interface IndexProgress {
  /** Files listed, and those of them read so far. */
  readonly files: number;
  readonly filesRead: number;
  /** Chunks so far; of these newly encoded. */
  readonly chunks: number;
  readonly embedded: number;
}

export interface IndexReport {
  readonly repo: string;
  readonly version: string;
  readonly fingerprint: string;
  /** False where the stored version was this one already. */
  readonly changed: boolean;
  /** Files that gave chunks or were blank (of a change set: those of the changed ones); files left out, by reason. */
  readonly files: number;
  readonly skipped: Readonly<SkipCounts>;
  readonly chunks: number;
  readonly embedded: number;
  readonly reused: number;
  /** Of those embedded: to be read by their syntax tree, and read by source because they do not parse. */
  readonly unparsed: number;
  /** Chunks of versions before the one that was replaced, or of runs that broke off, that are gone now. */
  readonly removed: number;
  readonly seconds: number;
}

export interface IndexJob {
  /** Key of the repository: see repoKey. */
  readonly repo: string;
  readonly sources: Sources;
  readonly store: Store;
  readonly encoder: ContextEncoder;
  readonly options: IndexOptions;
  readonly onProgress?: (progress: IndexProgress) => void;
  readonly signal?: AbortSignal;
}

/** Chunks that are encoded and stored at a time: enough to sort by length, little enough to show progress. */
const BATCH = 256;
/** How long a dead indexer keeps others out. */
const LOCK_TTL_MS = 15_000;

/** Indexes a working tree. Errors as of {@link indexSources}. */
export async function indexRepository(job: Omit<IndexJob, 'sources'> & { readonly dir: string }): Promise<IndexReport> {
  return indexSources({ ...job, sources: await treeSources(job.dir, job.options.maxFileBytes) });
}

/**
 * Indexes a repository, or brings changes into the index of one.
 * @throws ServingError invalid_request, index_locked, store_unavailable, or what the encoder throws; for changes also
 *   repo_not_found, index_moved, store_invalid; the signal's reason. The version that was served before is served on.
 */
export async function indexSources(job: IndexJob): Promise<IndexReport> {
  try {
    const report = await runIndex(job);
    metrics.indexRuns.inc({ outcome: 'ok' });
    metrics.indexedChunks.inc({ outcome: 'embedded' }, report.embedded);
    metrics.indexedChunks.inc({ outcome: 'reused' }, report.reused);
    metrics.indexedChunks.inc({ outcome: 'removed' }, report.removed);
    for (const [reason, count] of Object.entries(report.skipped)) metrics.skippedFiles.inc({ reason }, count);
    return report;
  } catch (error) {
    metrics.indexRuns.inc({ outcome: ServingError.from(error).code });
    throw error;
  }
}

async function runIndex(job: IndexJob): Promise<IndexReport> {
  const startedAt = performance.now();
  const writer = await job.store.lock(job.repo, LOCK_TTL_MS);
  try {
    const run = new IndexRun(job, writer, await writer.stored(job.encoder.fingerprint));
    await run.keepUnchanged();
    await run.readAll();
    const { version, changed, replaced } = await run.publish();
    // Readers go on with what was replaced until they have loaded the new version: its chunks go with the next run.
    const removed = await writer.sweep(replaced);
    const { files, skipped, embedded, reused, unparsed } = run;
    return {
      repo: job.repo,
      version,
      fingerprint: job.encoder.fingerprint,
      changed,
      files,
      skipped,
      chunks: embedded + reused,
      embedded,
      reused,
      unparsed,
      removed,
      seconds: (performance.now() - startedAt) / 1000,
    };
  } finally {
    // Where the store has gone, the lock goes by its time to live.
    await writer.release().catch(() => {});
  }
}

/** What one run has counted and not yet written. */
class IndexRun {
  files = 0;
  reused = 0;
  unparsed = 0;
  readonly skipped: SkipCounts;
  readonly #job: IndexJob;
  readonly #writer: IndexWriter;
  readonly #stored: ReadonlySet<string>;
  /** Chunks of the version in the making; those of one file in the order of their lines. */
  readonly #chunks: { readonly id: string; readonly path: string }[] = [];
  #pending: Chunk[] = [];
  /** Ids of the chunks that this run has encoded and written. */
  readonly #written: string[] = [];

  /** @param stored ids of chunks that need no encoding. */
  constructor(job: IndexJob, writer: IndexWriter, stored: ReadonlySet<string>) {
    this.#job = job;
    this.#writer = writer;
    this.#stored = stored;
    this.skipped = { ...noSkips(), ...job.sources.skipped };
  }

  get embedded(): number {
    return this.#written.length;
  }

  /** Of a change set: takes over the chunks of all other files from the current version. */
  async keepUnchanged(): Promise<void> {
    const { repo, sources, store, signal } = this.#job;
    if (!sources.replaced) return;
    const { head, ids } = await this.#base();
    for (let start = 0; start < head.chunks; start += BATCH) {
      signal?.throwIfAborted();
      const wanted = Array.from({ length: Math.min(BATCH, head.chunks - start) }, (_, i) => idAt(ids, start + i));
      const entries = whole(repo, await store.entries(repo, wanted));
      const kept = entries.filter((entry) => !sources.replaced?.has(entry.path));
      // Of another encoder, or lost: encoded again from the text that is stored beside the old vector.
      const bare = kept.filter((entry) => !this.#stored.has(entry.id)).map((entry) => entry.id);
      const contents = whole(repo, await store.contents(repo, head.fingerprint, bare));
      const texts = new Map(contents.map(({ text }, i) => [bare[i], text]));
      for (const entry of kept) await this.#add({ ...entry, text: texts.get(entry.id) ?? '' }, 0);
    }
  }

  async #base(): Promise<IndexSnapshot> {
    const { repo, sources, store } = this.#job;
    const base = await store.snapshot(repo);
    if (!base) throw new ServingError('repo_not_found', `there is no index of ${repo} to change`, { param: 'repo' });
    const { version } = base.head;
    if (sources.baseVersion !== undefined && sources.baseVersion !== version) {
      throw new ServingError(
        'index_moved',
        `the changes are against version ${JSON.stringify(sources.baseVersion)} of ${repo}, the current one is ${version}`,
        { param: 'base_version' },
      );
    }
    return base;
  }

  async readAll(): Promise<void> {
    const { sources, options, signal } = this.#job;
    for (const [i, path] of sources.paths.entries()) {
      signal?.throwIfAborted();
      const source = await sources.read(path);
      if ('skipped' in source) this.skipped[source.skipped]++;
      else {
        this.files++;
        for (const chunk of chunkFile(path, source.text, options)) await this.#add(chunk, i);
      }
      this.#progress(i + 1);
    }
    await this.#flush();
    this.#progress(sources.paths.length);
  }

  async #add(chunk: Chunk, filesRead: number): Promise<void> {
    this.#chunks.push({ id: chunk.id, path: chunk.path });
    if (this.#stored.has(chunk.id)) {
      this.reused++;
      return;
    }
    this.#pending.push(chunk);
    if (this.#pending.length < BATCH) return;
    await this.#flush();
    this.#progress(filesRead);
  }

  async #flush(): Promise<void> {
    const { encoder, signal } = this.#job;
    const chunks = this.#pending;
    if (chunks.length === 0) return;
    this.#pending = [];
    const encoded = await encoder.encode(chunks, signal);
    const rows = chunks.map((chunk, i) => ({ chunk, ...(encoded[i] as EncodedChunk) }));
    await this.#writer.put(encoder.fingerprint, rows);
    this.#written.push(...chunks.map(({ id }) => id));
    this.unparsed += encoded.filter(({ fellBack }) => fellBack).length;
  }

  /** By path, then line: chunks that were kept and chunks that are new are of different files. */
  #inOrder() {
    return this.#job.sources.replaced
      ? this.#chunks.toSorted((a, b) => (a.path < b.path ? -1 : Number(a.path > b.path)))
      : this.#chunks;
  }

  #progress(filesRead: number): void {
    this.#job.onProgress?.({
      files: this.#job.sources.paths.length,
      filesRead,
      chunks: this.#chunks.length,
      embedded: this.embedded,
    });
  }

  /**
   * What a server has acknowledged may be gone when another takes its place, or when it comes back from its last snapshot.
   * @throws ServingError store_unavailable.
   */
  async #assertStored(): Promise<void> {
    const { repo, store, signal } = this.#job;
    for (let start = 0; start < this.#written.length; start += BATCH) {
      signal?.throwIfAborted();
      const entries = await store.entries(repo, this.#written.slice(start, start + BATCH));
      if (entries.every((entry) => entry !== undefined)) continue;
      throw new ServingError('store_unavailable', `the store lost chunks of ${repo} that this run wrote (a failover?)`);
    }
  }

  async publish(): Promise<{ version: string; changed: boolean; replaced?: IndexSnapshot | undefined }> {
    const { repo, store, encoder, options, signal } = this.#job;
    signal?.throwIfAborted();
    await this.#assertStored();
    const { fingerprint, hidden } = encoder;
    const chunks = this.#inOrder();
    const ids = packIds(chunks.map((chunk) => chunk.id));
    const { retriever = DEFAULT_RETRIEVER } = options;
    const hash = createHash('sha256').update(`${fingerprint}\0${retriever}\0`).update(ids);
    const version = hash.digest('hex').slice(0, 16);
    const replaced = await published(store, repo);
    if (replaced?.head.version === version) return { version, changed: false };
    const head: IndexHead = {
      version,
      fingerprint,
      hidden,
      retriever,
      ...filesOf(chunks),
      chunks: chunks.length,
      indexedAt: new Date().toISOString(),
    };
    await this.#writer.publish({ head, ids });
    return { version, changed: true, replaced };
  }
}

/** The number of files that chunks in order are of, and their languages. */
function filesOf(chunks: readonly { readonly path: string }[]): Pick<IndexHead, 'files' | 'languages'> {
  const paths = chunks.filter(({ path }, i) => path !== chunks[i - 1]?.path).map(({ path }) => path);
  const counts = new Map<string, number>();
  for (const path of paths) counts.set(languageOf(path), (counts.get(languageOf(path)) ?? 0) + 1);
  return { files: paths.length, languages: Object.fromEntries([...counts].sort(([a], [b]) => (a < b ? -1 : 1))) };
}

/** @throws ServingError store_invalid where some are missing. */
function whole<T>(repo: string, rows: readonly (T | undefined)[]): T[] {
  if (rows.every((row) => row !== undefined)) return rows as T[];
  throw new ServingError('store_invalid', `the index of ${repo} has lost chunks: changes cannot be brought into it`);
}

/** An index that cannot be read is one to be replaced. */
async function published(store: Store, repo: string): Promise<IndexSnapshot | undefined> {
  try {
    return await store.snapshot(repo);
  } catch (error) {
    if (error instanceof ServingError && error.code === 'store_invalid') return undefined;
    throw error;
  }
}
