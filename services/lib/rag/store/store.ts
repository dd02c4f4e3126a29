/**
 * An index, independent of where it is stored. There are two stores: Redis, and LMDB embedded on one machine.
 *
 * A repository has one *head*, which says which chunks make up its current version. Chunks lie beside it under their
 * content hash, vectors under (fingerprint, content hash), and neither ever changes once written. An index run adds
 * what is missing or damaged, then replaces the head in one step, then sweeps what neither the new head nor the one
 * before it names: that one stays because readers hold the old version in memory, and read its rows, while they load
 * the new one. Thus
 *  - readers see the old version whole or the new one whole,
 *  - a run that breaks off leaves only rows, which the next one reuses,
 *  - a reader that finds a chunk of its version swept knows that there is a newer version.
 */
import { z } from 'zod';
import { SOFT_PER_CHUNK } from '../../model/bundle/choices.ts';
import type { Chunk } from '../chunk.ts';
import { RETRIEVERS } from '../retriever-name.ts';

export const indexHead = z.strictObject({
  /** First 64 bits of a SHA-256 over fingerprint and chunk ids, in hex: equal content is the same version. */
  version: z.string().regex(/^[0-9a-f]{16}$/),
  /** Identifies the encoder and projector that made the vectors, if any, and says what rows hold: see row.ts. */
  fingerprint: z.string().min(1),
  /** Number of values in the vector of one soft token; 0 if rows hold none. */
  hidden: z.int().min(0),
  /** Soft tokens of one chunk; one if it is absent. Gateways of earlier releases refuse heads that have it. */
  softPerChunk: z.literal(SOFT_PER_CHUNK).optional(),
  /** Number of files that have a row with a vector of their own; none if it is absent. As for `softPerChunk`. */
  fileRows: z.int().min(1).optional(),
  /** Number of files that gave chunks. */
  files: z.int().min(0),
  chunks: z.int().min(0),
  /** Number of files that gave chunks, by language. */
  languages: z.record(z.string(), z.int().min(1)).default({}),
  /** The retriever that searches this index if a request does not say; `jaccard` if it is absent. */
  retriever: z.enum(RETRIEVERS).optional(),
  /** Of a side index (see repo-key.ts): the version of the repository's own index that it was made of. */
  of: z
    .string()
    .regex(/^[0-9a-f]{16}$/)
    .optional(),
  /** Remote URL of the checkout that was indexed, in the form of remote-form.ts; undefined if none was told. */
  remote: z.string().max(2_048).optional(),
  /** Time at which this version was completed, in ISO 8601. */
  indexedAt: z.iso.datetime(),
});
export type IndexHead = Readonly<z.infer<typeof indexHead>>;

/** A version with the ids of all its rows. */
export interface IndexSnapshot {
  readonly head: IndexHead;
  /**
   * Ids of its chunks in the order of (path, line), then those of the rows of its files in the order of paths (see
   * `fileIdOf`): [chunks + fileRows] of 32 bytes each; read by `idAt`.
   */
  readonly ids: Buffer;
}

/** Files that are named among those that an index does not have, and bytes of their names together. */
export const MOST_LEFT_OUT = { files: 1_000, bytes: 64 * 1024 } as const;

export const leftOut = z.object({
  /** All of them, by reason; see SKIP_REASONS of the indexer. */
  counts: z.record(z.string(), z.int().min(0)),
  /** Some of them with the reason, in the order of names; a folder ends in `/`. */
  files: z
    .array(z.tuple([z.string(), z.string()]).readonly())
    .max(MOST_LEFT_OUT.files)
    .readonly(),
});
/** The files that the last index run did not index. */
export type LeftOut = Readonly<z.infer<typeof leftOut>>;

/** The part of a chunk that retrieval keeps in memory. */
export type ChunkEntry = Omit<Chunk, 'text'>;

/** The part of a chunk that goes into a prompt. */
export interface ChunkContent {
  /** Empty if only the vectors were read. */
  readonly text: string;
  /** [softPerChunk, hidden]; empty in an index without vectors, and if only the text was read. [hidden] of a file. */
  readonly vector: Float32Array;
  /** [dim], of length 1: the encoder's own embedding, in an index for dense retrieval. */
  readonly embedding?: Float32Array;
}

/** A chunk with its vectors, as an index run writes it; or a file, as a chunk without text and identifiers. */
export interface ChunkRow {
  readonly chunk: Chunk;
  /** [softPerChunk, hidden]; stored as fp16; empty in an index without vectors. [hidden] of a file. */
  readonly vector: Float32Array;
  /** [dim]; stored as fp16. */
  readonly embedding?: Float32Array;
}

/**
 * A process that serves completions wants to hear at once that the store is away, and goes on without it. An index run
 * that reads waits up to 10 s for the store, since it would have to begin again.
 */
export type StoreUse = 'serving' | 'indexing';

/** A row that is stored and was not given. */
export interface LeftOutRow {
  /** The chunk's id, in hex. */
  readonly id: string;
  /**
   * `later` is a row for which the read had no bytes left: another read may give it. The other two say what is wrong
   * with the row itself.
   */
  readonly reason: 'damaged' | 'too_large' | 'later';
  /** Says in words what is wrong with it. */
  readonly why: string;
}

/** The part of a content that is read: `vectors` leaves `text` empty, `text` leaves the vectors out. */
export type RowPart = 'vectors' | 'text';

/** How much a read of rows may cost, and what becomes of rows that cannot be given. Without it nothing is bounded. */
export interface RowRead {
  /** Both parts if it is not given. It says nothing about entries. */
  readonly part?: RowPart | undefined;
  /** Larger rows are left out, in bytes. */
  readonly rowBytes?: number;
  /** The rows that are given have at most so many bytes together; at least `rowBytes`. */
  readonly bytes?: number;
  /** Told of each row that is there and was left out; it is undefined in the answer. Without it such a row fails. */
  readonly onLeftOut?: (row: LeftOutRow) => void;
  /** Told how many bytes the store has given. */
  readonly onBytes?: (bytes: number) => void;
  /** Aborted when nobody waits for the rows any more. A read that has not begun is given up then. */
  readonly signal?: AbortSignal;
}

interface HeadRead {
  /** It is one of the many heads of a list. */
  readonly isListed?: boolean;
}

/** Is told what an operator should know about a store that is being opened. */
export interface StoreLog {
  warn(fields: object, text: string): void;
}

/**
 * `repo` is a repository's key, made by {@link repoKey}.
 * All calls fail with ServingError: store_unavailable if the store does not answer, store_invalid if it holds something
 * that cannot be read. Each call has a deadline of its own.
 */
export interface Store {
  /** The store's URL, without credentials. */
  readonly address: string;
  /** One small read; undefined if there is no such repository. */
  head(repo: string, read?: HeadRead): Promise<IndexHead | undefined>;
  snapshot(repo: string): Promise<IndexSnapshot | undefined>;
  /** undefined where there is no such repository, or it was indexed by a release that did not keep this. */
  leftOut(repo: string): Promise<LeftOut | undefined>;
  /** Entries in the order of `ids` (hex); undefined for a chunk that is not there, or no longer there. */
  entries(repo: string, ids: readonly string[], read?: RowRead): Promise<(ChunkEntry | undefined)[]>;
  contents(
    repo: string,
    fingerprint: string,
    ids: readonly string[],
    read?: RowRead,
  ): Promise<(ChunkContent | undefined)[]>;
  /**
   * Keys of the repositories that a tenant has published, sorted.
   * @param which `sides` for the keys of side indexes; those of repositories where it is not given.
   */
  repositories(tenant: string, which?: 'sides'): Promise<string[]>;
  /**
   * Takes the right to change a repository's index. It lasts until released, or until `ttlMs` after the holder has
   * died.
   * @throws ServingError index_locked while another holder has it.
   */
  lock(repo: string, ttlMs: number): Promise<IndexWriter>;
  close(): Promise<void>;
}

/** Changes an index. Once another indexer has taken over, all writes fail with index_locked and change nothing. */
export interface IndexWriter {
  /** Ids (hex) of the chunks that are stored with a vector of `fingerprint`, without those whose rows are damaged. */
  stored(fingerprint: string): Promise<Set<string>>;
  put(fingerprint: string, rows: readonly ChunkRow[]): Promise<void>;
  /** Makes this the version that readers see. */
  publish(snapshot: IndexSnapshot): Promise<void>;
  /** Keeps what the run has left out, whether or not it has published another version. */
  putLeftOut(leftOut: LeftOut): Promise<void>;
  /**
   * Removes chunks and vectors that the published version does not name, and returns the number of chunks removed.
   * @param kept a version that readers may still hold: what it names stays too.
   */
  sweep(kept?: IndexSnapshot): Promise<number>;
  /** Removes the repository with all its versions, and returns whether it had been published. */
  remove(): Promise<boolean>;
  release(): Promise<void>;
}
