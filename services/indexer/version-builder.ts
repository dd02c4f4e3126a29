/**
 * The next version of an index in the making: which chunks it has, which of them must be encoded and written, and the
 * head that makes it the version readers see.
 */
import { createHash } from 'node:crypto';
import { ServingError } from '../lib/process/errors.ts';
import { type Chunk, type Chunking, chunkFile, chunkOf } from '../lib/rag/chunk.ts';
import type { ContextEncoder, EncodedChunk } from '../lib/rag/encode/encode.ts';
import { DEFAULT_RETRIEVER, type RetrieverName } from '../lib/rag/retriever-name.ts';
import { remoteForm } from '../lib/rag/store/remote-form.ts';
import { nameOf } from '../lib/rag/store/repo-key.ts';
import { fileIdOf, idAt, packIds } from '../lib/rag/store/row.ts';
import type { ChunkEntry, ChunkRow, IndexHead, IndexSnapshot, IndexWriter, Store } from '../lib/rag/store/store.ts';
import { LeftOutNames, leftOutAfter, leftOutOf } from './left-out.ts';
import { languageOf, noSkips, type Selecting, type SkipCounts, type SkipReason } from './selection.ts';
import type { Sources } from './sources.ts';
import { covers } from './tree.ts';

export interface IndexOptions extends Chunking, Selecting {
  /** The index's retriever, for requests that name none. The encoder must keep embeddings for dense and fused. */
  readonly retriever?: RetrieverName;
  /** Whether each file gets a row with a vector of its own; not if it is not given. */
  readonly fileVectors?: boolean;
}

export interface IndexProgress {
  /** Files listed, and how many of them have been read. */
  readonly files: number;
  readonly filesRead: number;
  /** Chunks so far, and how many of them were newly encoded. */
  readonly chunks: number;
  readonly embedded: number;
}

export interface IndexJob {
  /** Key of the repository: see repoKey. */
  readonly repo: string;
  readonly sources: Sources;
  readonly store: Store;
  readonly encoder: ContextEncoder;
  readonly options: IndexOptions;
  /** Remote URL of the checkout, as git writes it. Where none is given, the index keeps the one that it has. */
  readonly remoteUrl?: string | undefined;
  readonly onProgress?: (progress: IndexProgress) => void;
  readonly signal?: AbortSignal;
}

/** A file whose row is not stored: its chunks are encoded, those that are stored too, and their encodings summed. */
interface OpenFile {
  readonly id: string;
  readonly path: string;
  readonly startLine: number;
  readonly endLine: number;
  readonly chunks: number;
  /** Chunks that are not encoded yet. */
  left: number;
  /** [dim] */
  sum: Float64Array;
}

/** A chunk that is to be encoded. */
interface Pending {
  readonly chunk: Chunk;
  /** Its row is there, and its encoding is needed for the row of its file. */
  readonly isStored: boolean;
  readonly file: OpenFile | undefined;
}

/** Chunks that are encoded and stored at a time: enough to sort them by length, few enough to show progress. */
const BATCH = 256;

export class VersionBuilder {
  files = 0;
  embedded = 0;
  reused = 0;
  unparsed = 0;
  readonly skipped: SkipCounts;
  /** Files of which nothing, or not all, is in this version. */
  readonly #leftOut = new LeftOutNames();
  readonly #job: IndexJob;
  readonly #writer: IndexWriter;
  readonly #stored: ReadonlySet<string>;
  /** Chunks of the new version. Those of one file are in the order of their lines. */
  readonly #chunks: { readonly id: string; readonly path: string }[] = [];
  /** Ids of the rows of its files, by path. */
  readonly #files = new Map<string, string>();
  #pending: Pending[] = [];
  /** Ids of the rows that this run has written: of chunks that it has encoded, and of files. */
  readonly #written = new Set<string>();

  /** @param stored ids of chunks that are stored with this encoder's vectors and need no encoding. */
  constructor(job: IndexJob, writer: IndexWriter, stored: ReadonlySet<string>) {
    this.#job = job;
    this.#writer = writer;
    this.#stored = stored;
    this.skipped = { ...noSkips(), ...job.sources.skipped };
  }

  /** Reads all sources, and takes over from the current version what they do not replace. */
  async build(): Promise<void> {
    // A change set against another version is refused before anything is read.
    const base = this.#job.sources.replaced ? await this.#base() : undefined;
    await this.#readAll();
    await this.#keep(base);
  }

  /**
   * Takes over chunks from the current version: for a change set those of all other files, and always those of files
   * that could not be read.
   */
  async #keep(base: IndexSnapshot | undefined): Promise<void> {
    const { repo, sources, store, signal } = this.#job;
    const { replaced, unreadable = new Set<string>() } = sources;
    if (!replaced && unreadable.size === 0) return;
    const from = base ?? (await published(store, repo));
    if (!from) return;
    const { head, ids } = from;
    // A run over all files can do without what the store has lost; a change set cannot.
    const whole = <T>(rows: readonly (T | undefined)[]) => (replaced ? assertNoneLost(repo, rows) : rows);
    const damaged = { onLeftOut: () => {} }; // counts as lost
    const isKept = ({ path }: Pick<ChunkEntry, 'path'>) =>
      (replaced && !replaced.has(path)) || covers(unreadable, path);
    const files = await this.#keptFiles(from, isKept);
    for (let start = 0; start < head.chunks; start += BATCH) {
      signal?.throwIfAborted();
      const wanted = Array.from({ length: Math.min(BATCH, head.chunks - start) }, (_, i) => idAt(ids, start + i));
      const entries = whole(await store.entries(repo, wanted, damaged)).filter((entry) => entry !== undefined);
      const kept = entries.filter(isKept);
      // Chunks whose vectors are lost or damaged, or another encoder's, are encoded again from the text stored with
      // the old vector. Only a text that still has its hash may be: damage would become a sound row. So are all chunks
      // of a file whose own row is lost.
      const bare = kept.filter((entry) => !this.#stored.has(entry.id) || files.has(entry.path));
      const bareIds = bare.map(({ id }) => id);
      const contents = await store.contents(repo, head.fingerprint, bareIds, { ...damaged, part: 'text' });
      const again = bare.map((entry, i) => {
        const text = contents[i]?.text;
        const chunk = text === undefined ? undefined : chunkOf(entry, text);
        return chunk?.id === entry.id ? chunk : undefined;
      });
      const chunks = new Map(whole(again).map((chunk, i) => [bareIds[i], chunk]));
      for (const entry of kept) {
        const file = files.get(entry.path);
        const isStored = file === undefined && this.#stored.has(entry.id);
        const chunk = isStored ? { ...entry, text: '' } : chunks.get(entry.id);
        if (chunk) await this.#add(chunk, sources.paths.length, file);
      }
    }
    await this.#flush();
    this.#progress(sources.paths.length);
  }

  /** Files of a version that are kept, and whose rows are not stored, by path. */
  async #keptFiles(
    { head, ids }: IndexSnapshot,
    isKept: (entry: Pick<ChunkEntry, 'path'>) => boolean,
  ): Promise<ReadonlyMap<string, OpenFile>> {
    const open = new Map<string, OpenFile>();
    const { repo, store, signal } = this.#job;
    if (!this.#keepsFiles) return open;
    const chunks = new Map<string, ChunkEntry[]>();
    for (let start = 0; start < head.chunks; start += BATCH) {
      signal?.throwIfAborted();
      const wanted = Array.from({ length: Math.min(BATCH, head.chunks - start) }, (_, i) => idAt(ids, start + i));
      for (const entry of await store.entries(repo, wanted, { onLeftOut: () => {} })) {
        if (entry === undefined || !isKept(entry)) continue;
        const ofFile = chunks.get(entry.path);
        if (ofFile) ofFile.push(entry);
        else chunks.set(entry.path, [entry]);
      }
    }
    for (const [path, ofFile] of chunks) {
      const file = this.#openFile(path, ofFile);
      if (file) open.set(path, file);
    }
    return open;
  }

  get #keepsFiles(): boolean {
    const { options, encoder } = this.#job;
    return options.fileVectors === true && encoder.hidden > 0;
  }

  /** A file of the new version; undefined if its row is stored, or none is wanted. @param chunks all of the file's. */
  #openFile(path: string, chunks: readonly Omit<ChunkEntry, 'tokens'>[]): OpenFile | undefined {
    const [first, last] = [chunks[0], chunks.at(-1)];
    if (!this.#keepsFiles || first === undefined || last === undefined) return undefined;
    const id = fileIdOf(path, packIds(chunks.map((chunk) => chunk.id)));
    this.#files.set(path, id);
    if (this.#stored.has(id)) return undefined;
    const { length } = chunks;
    const sum = new Float64Array(0);
    return { id, path, startLine: first.startLine, endLine: last.endLine, chunks: length, left: length, sum };
  }

  async #base(): Promise<IndexSnapshot> {
    const { repo, sources, store } = this.#job;
    const base = await store.snapshot(repo);
    if (!base)
      throw new ServingError('repo_not_found', `there is no index of ${nameOf(repo)} to change`, { param: 'repo' });
    const { version } = base.head;
    if (sources.baseVersion !== undefined && sources.baseVersion !== version) {
      throw new ServingError(
        'index_moved',
        `the changes are against version ${JSON.stringify(sources.baseVersion)} of ${nameOf(repo)}, the current one is ${version}`,
        { param: 'base_version' },
      );
    }
    return base;
  }

  /** Reads, chunks and encodes all sources. */
  async #readAll(): Promise<void> {
    const { sources, options, signal } = this.#job;
    for (const [i, path] of sources.paths.entries()) {
      signal?.throwIfAborted();
      const source = await sources.read(path);
      if ('skipped' in source) this.#leaveOut(path, source.skipped);
      else {
        this.files++;
        if (source.leftOut) this.#leaveOut(path, source.leftOut);
        const chunks = chunkFile(path, source.text, options);
        const file = this.#openFile(path, chunks);
        for (const chunk of chunks) await this.#add(chunk, i, file);
      }
      this.#progress(i + 1);
    }
    await this.#flush();
    this.#progress(sources.paths.length);
  }

  #leaveOut(path: string, reason: SkipReason): void {
    this.skipped[reason]++;
    this.#leftOut.add(path, reason);
  }

  /** Keeps what this run has left out, for whoever misses a file. */
  async keepLeftOut(): Promise<void> {
    const { repo, store, sources } = this.#job;
    const now = leftOutOf(sources.leftOut, this.#leftOut, this.skipped);
    const { replaced } = sources;
    // A list that cannot be read is replaced.
    const kept = replaced && (await store.leftOut(repo).catch(() => undefined));
    await this.#writer.putLeftOut(replaced ? leftOutAfter(kept, now, replaced) : now);
  }

  async #add(chunk: Chunk, filesRead: number, file: OpenFile | undefined): Promise<void> {
    this.#chunks.push({ id: chunk.id, path: chunk.path });
    const isStored = this.#stored.has(chunk.id);
    if (isStored) this.reused++;
    if (isStored && file === undefined) return;
    this.#pending.push({ chunk, isStored, file });
    if (this.#pending.length < BATCH) return;
    await this.#flush();
    this.#progress(filesRead);
  }

  async #flush(): Promise<void> {
    const { encoder, signal } = this.#job;
    const pending = this.#pending;
    if (pending.length === 0) return;
    this.#pending = [];
    const chunks = pending.map(({ chunk }) => chunk);
    const encoded = await encoder.encode(chunks, signal);
    const rows = pending.flatMap(({ chunk, isStored }, i) => (isStored ? [] : [{ chunk, ...encoded[i]! }]));
    await this.#put(rows);
    this.embedded += rows.length;
    this.unparsed += rows.filter(({ fellBack }) => fellBack).length;
    const done = pending.flatMap(({ file }, i) => (file && isWhole(file, encoded[i]!) ? [file] : []));
    const means = done.map(({ sum, chunks: count }) => Float32Array.from(sum, (value) => value / count));
    const vectors = done.length === 0 ? [] : await encoder.project(means, signal);
    await this.#put(done.map((file, i) => ({ chunk: { ...file, text: '', tokens: [] }, vector: vectors[i]! })));
  }

  async #put(rows: readonly ChunkRow[]): Promise<void> {
    if (rows.length === 0) return;
    await this.#writer.put(this.#job.encoder.fingerprint, rows);
    for (const { chunk } of rows) this.#written.add(chunk.id);
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
   * Makes this the version that readers see, unless it is that already.
   * @returns the version that was replaced, if any.
   */
  async publish(): Promise<{ version: string; changed: boolean; replaced?: IndexSnapshot | undefined }> {
    const { repo, store, encoder, options, signal, remoteUrl } = this.#job;
    signal?.throwIfAborted();
    await this.#assertStored();
    await this.#job.sources.assertThere?.();
    const { fingerprint, hidden, softPerChunk } = encoder;
    const chunks = this.#inOrder();
    const fileIds = this.#fileIds(chunks);
    const ids = packIds([...chunks.map((chunk) => chunk.id), ...fileIds]);
    const { retriever = DEFAULT_RETRIEVER } = options;
    const hash = createHash('sha256').update(`${fingerprint}\0${retriever}\0`).update(ids);
    const version = hash.digest('hex').slice(0, 16);
    const replaced = await published(store, repo);
    const remote = (remoteUrl === undefined ? undefined : remoteForm(remoteUrl)) ?? replaced?.head.remote;
    if (replaced?.head.version === version && replaced.head.remote === remote) return { version, changed: false };
    const head: IndexHead = {
      version,
      fingerprint,
      hidden,
      ...(softPerChunk > 1 && { softPerChunk }),
      ...(fileIds.length > 0 && { fileRows: fileIds.length }),
      retriever,
      ...filesOf(chunks),
      chunks: chunks.length,
      ...(remote !== undefined && { remote }),
      indexedAt: new Date().toISOString(),
    };
    await this.#writer.publish({ head, ids });
    return { version, changed: replaced?.head.version !== version, replaced };
  }

  /**
   * Reads back what this run wrote: what a server has acknowledged may be gone when a replica takes its place, or when
   * it comes back from its last snapshot.
   * @throws ServingError store_unavailable.
   */
  async #assertStored(): Promise<void> {
    const { repo, store, signal } = this.#job;
    const written = [...this.#written];
    for (let start = 0; start < written.length; start += BATCH) {
      signal?.throwIfAborted();
      const entries = await store.entries(repo, written.slice(start, start + BATCH));
      if (entries.every((entry) => entry !== undefined)) continue;
      throw new ServingError('store_unavailable', `the store lost chunks of ${repo} that this run wrote (a failover?)`);
    }
  }

  /** Ids of the rows of files that are there, in the order of the chunks. */
  #fileIds(chunks: readonly { readonly path: string }[]): string[] {
    const ids = [...new Set(chunks.map(({ path }) => path))].flatMap((path) => this.#files.get(path) ?? []);
    return ids.filter((id) => this.#stored.has(id) || this.#written.has(id));
  }

  /** By path, then by line. Chunks that were kept and chunks that are new belong to different files. */
  #inOrder() {
    const { replaced, unreadable } = this.#job.sources;
    return replaced || unreadable?.size
      ? this.#chunks.toSorted((a, b) => (a.path < b.path ? -1 : Number(a.path > b.path)))
      : this.#chunks;
  }
}

/** Adds the encoding of one more chunk of a file, and says whether it was the last one. */
function isWhole(file: OpenFile, { encoding = new Float32Array(0) }: EncodedChunk): boolean {
  if (file.sum.length === 0) file.sum = new Float64Array(encoding.length);
  for (const [i, value] of encoding.entries()) file.sum[i]! += value;
  return --file.left === 0;
}

/** The number of files that chunks in order belong to, and their languages. */
function filesOf(chunks: readonly { readonly path: string }[]): Pick<IndexHead, 'files' | 'languages'> {
  const paths = chunks.filter(({ path }, i) => path !== chunks[i - 1]?.path).map(({ path }) => path);
  const counts = new Map<string, number>();
  for (const path of paths) counts.set(languageOf(path), (counts.get(languageOf(path)) ?? 0) + 1);
  return { files: paths.length, languages: Object.fromEntries([...counts].sort(([a], [b]) => (a < b ? -1 : 1))) };
}

/** @throws ServingError store_invalid if some are missing. */
function assertNoneLost<T>(repo: string, rows: readonly (T | undefined)[]): T[] {
  if (rows.every((row) => row !== undefined)) return rows as T[];
  throw new ServingError(
    'store_invalid',
    `the index of ${repo} has lost chunks, or they are damaged: changes cannot be brought into it`,
  );
}

/** The version that readers see; undefined if there is none, or none that can be read: it is replaced then. */
async function published(store: Store, repo: string): Promise<IndexSnapshot | undefined> {
  try {
    return await store.snapshot(repo);
  } catch (error) {
    if (error instanceof ServingError && error.code === 'store_invalid') return undefined;
    throw error;
  }
}
