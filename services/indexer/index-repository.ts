/**
 * One index run: sources → chunks → vectors → store. Chunks that are stored with this encoder's fingerprint are not
 * encoded again; readers see the new version when all of it is there, and the old one until then.
 */
import { createHash } from 'node:crypto';
import { ServingError } from '../lib/process/errors.ts';
import { metrics } from '../lib/process/metrics.ts';
import { type Chunk, type Chunking, chunkFile } from '../lib/rag/chunk.ts';
import type { ContextEncoder } from '../lib/rag/encode.ts';
import { packIds } from '../lib/rag/row.ts';
import type { IndexHead, IndexWriter, Store } from '../lib/rag/store.ts';
import { listSources, readSource, SKIP_REASONS, type SkipCounts } from './sources.ts';

export interface IndexOptions extends Chunking {
  readonly maxFileBytes: number;
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
  /** Files that gave chunks or were empty; those that were not read, by reason. */
  readonly files: number;
  readonly skipped: Readonly<SkipCounts>;
  readonly chunks: number;
  readonly embedded: number;
  readonly reused: number;
  /** Chunks of earlier versions, or of runs that broke off, that are gone now. */
  readonly removed: number;
  readonly seconds: number;
}

export interface IndexJob {
  readonly repo: string;
  readonly dir: string;
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

/**
 * @throws ServingError invalid_request, index_locked, store_unavailable, or what the encoder throws; the signal's
 *   reason. The version that was served before is served on.
 */
export async function indexRepository(job: IndexJob): Promise<IndexReport> {
  const startedAt = performance.now();
  const { paths, unreadable } = await listSources(job.dir);
  const writer = await job.store.lock(job.repo, LOCK_TTL_MS);
  try {
    const run = new IndexRun(job, writer, paths, await writer.stored(job.encoder.fingerprint));
    run.skipped.unreadable = unreadable;
    await run.readAll();
    const { version, changed } = await run.publish();
    const removed = await writer.sweep();
    const { files, skipped, embedded, reused } = run;
    metrics.indexedChunks.inc({ outcome: 'embedded' }, embedded);
    metrics.indexedChunks.inc({ outcome: 'reused' }, reused);
    metrics.indexedChunks.inc({ outcome: 'removed' }, removed);
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
  embedded = 0;
  reused = 0;
  readonly skipped = Object.fromEntries(SKIP_REASONS.map((reason) => [reason, 0])) as SkipCounts;
  readonly #job: IndexJob;
  readonly #writer: IndexWriter;
  readonly #paths: readonly string[];
  readonly #stored: ReadonlySet<string>;
  /** Ids of the version in the making, in the order of (path, line). */
  readonly #ids: string[] = [];
  #pending: Chunk[] = [];

  constructor(job: IndexJob, writer: IndexWriter, paths: readonly string[], stored: ReadonlySet<string>) {
    this.#job = job;
    this.#writer = writer;
    this.#paths = paths;
    this.#stored = stored;
  }

  async readAll(): Promise<void> {
    const { dir, options, signal } = this.#job;
    for (const [i, path] of this.#paths.entries()) {
      signal?.throwIfAborted();
      const source = await readSource(dir, path, options.maxFileBytes);
      if ('skipped' in source) this.skipped[source.skipped]++;
      else {
        this.files++;
        for (const chunk of chunkFile(path, source.text, options)) await this.#add(chunk, i);
      }
      this.#progress(i + 1);
    }
    await this.#flush();
    this.#progress(this.#paths.length);
  }

  async #add(chunk: Chunk, filesRead: number): Promise<void> {
    this.#ids.push(chunk.id);
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
    const vectors = await encoder.encode(
      chunks.map((chunk) => chunk.text),
      signal,
    );
    const rows = chunks.map((chunk, i) => ({ chunk, vector: vectors[i] as Float32Array }));
    await this.#writer.put(encoder.fingerprint, rows);
    this.embedded += chunks.length;
  }

  #progress(filesRead: number): void {
    this.#job.onProgress?.({
      files: this.#paths.length,
      filesRead,
      chunks: this.#ids.length,
      embedded: this.embedded,
    });
  }

  async publish(): Promise<{ version: string; changed: boolean }> {
    const { repo, store, encoder, signal } = this.#job;
    signal?.throwIfAborted();
    const { fingerprint, hidden } = encoder;
    const ids = packIds(this.#ids);
    const version = createHash('sha256').update(fingerprint).update('\0').update(ids).digest('hex').slice(0, 16);
    if ((await publishedVersion(store, repo)) === version) return { version, changed: false };
    const head: IndexHead = {
      version,
      fingerprint,
      hidden,
      files: this.files,
      chunks: this.#ids.length,
      indexedAt: new Date().toISOString(),
    };
    await this.#writer.publish({ head, ids });
    return { version, changed: true };
  }
}

/** An index that cannot be read is one to be replaced. */
async function publishedVersion(store: Store, repo: string): Promise<string | undefined> {
  try {
    return (await store.snapshot(repo))?.head.version;
  } catch (error) {
    if (error instanceof ServingError && error.code === 'store_invalid') return undefined;
    throw error;
  }
}
