/**
 * What an index is, wherever it is stored. Two stores hold one: Redis, and LMDB embedded on one machine.
 *
 * A repository has one *head*: which chunks make up its current version. Chunks lie beside it under their content hash,
 * vectors under (fingerprint, content hash); neither ever changes once written. An index run adds what is missing, then
 * replaces the head in one step, then sweeps what neither the new head nor the one before it names: readers hold the old
 * version in memory while they load the new one, and go on reading its rows. So readers see the old version whole or the
 * new one whole, a run that breaks off leaves only rows for the next one to reuse, and a reader that finds a chunk of its
 * version swept knows that there is a newer one.
 */
import { z } from 'zod';
import type { Chunk } from '../chunk.ts';
import { RETRIEVERS } from '../retriever-name.ts';

export const indexHead = z.strictObject({
  /** First 64 bits of a SHA-256 over fingerprint and chunk ids, in hex: equal content is the same version. */
  version: z.string().regex(/^[0-9a-f]{16}$/),
  /** Of the encoder and projector that made the vectors, and whether rows hold embeddings: see row.ts. */
  fingerprint: z.string().min(1),
  /** Values of one vector. */
  hidden: z.int().min(1),
  /** Files that gave chunks. */
  files: z.int().min(0),
  chunks: z.int().min(0),
  /** Files that gave chunks, by language. */
  languages: z.record(z.string(), z.int().min(1)).default({}),
  /** What searches this index where a request does not say; `jaccard` where it is absent. */
  retriever: z.enum(RETRIEVERS).optional(),
  /** When this version was completed, ISO 8601. */
  indexedAt: z.iso.datetime(),
});
export type IndexHead = Readonly<z.infer<typeof indexHead>>;

/** A version in full. */
export interface IndexSnapshot {
  readonly head: IndexHead;
  /** Ids of its chunks in the order of (path, line): [chunks] of 32 bytes; read by `idAt`. */
  readonly ids: Buffer;
}

/** What retrieval keeps of a chunk in memory. */
export type ChunkEntry = Omit<Chunk, 'text'>;

/** What goes into a prompt. */
export interface ChunkContent {
  readonly text: string;
  /** [hidden] */
  readonly vector: Float32Array;
  /** [dim], length 1: the encoder's own embedding, where the index is one for dense retrieval. */
  readonly embedding?: Float32Array;
}

export interface Row {
  readonly chunk: Chunk;
  /** [hidden]; stored as fp16. */
  readonly vector: Float32Array;
  /** [dim]; stored as fp16. */
  readonly embedding?: Float32Array;
}

/**
 * `repo` is a repository's key, made by {@link repoKey}.
 * All calls fail with ServingError: store_unavailable where the store does not answer, store_invalid where it holds what
 * cannot be read. Each has a deadline of its own.
 */
export interface Store {
  /** Where it is, without credentials. */
  readonly address: string;
  /** One small read. Undefined: no such repository. */
  head(repo: string): Promise<IndexHead | undefined>;
  snapshot(repo: string): Promise<IndexSnapshot | undefined>;
  /** In the order of `ids` (hex); undefined where there is none (any more). */
  entries(repo: string, ids: readonly string[]): Promise<(ChunkEntry | undefined)[]>;
  contents(repo: string, fingerprint: string, ids: readonly string[]): Promise<(ChunkContent | undefined)[]>;
  /** Keys of the repositories that a tenant has published, sorted. */
  repositories(tenant: string): Promise<string[]>;
  /**
   * The right to change a repository's index, held until released, or until `ttlMs` after the holder has died.
   * @throws ServingError index_locked while another one has it.
   */
  lock(repo: string, ttlMs: number): Promise<IndexWriter>;
  close(): Promise<void>;
}

/** All writes fail with index_locked, and change nothing, once another indexer has taken over. */
export interface IndexWriter {
  /** Ids (hex) of the chunks that are stored with a vector of `fingerprint`. */
  stored(fingerprint: string): Promise<Set<string>>;
  put(fingerprint: string, rows: readonly Row[]): Promise<void>;
  /** Makes this the version that readers see. */
  publish(snapshot: IndexSnapshot): Promise<void>;
  /**
   * Removes chunks and vectors that the published version does not name; answers how many chunks went.
   * @param kept a version that readers may still hold: what it names stays too.
   */
  sweep(kept?: IndexSnapshot): Promise<number>;
  /** Removes the repository with all its versions; answers whether it had been published. */
  remove(): Promise<boolean>;
  release(): Promise<void>;
}
