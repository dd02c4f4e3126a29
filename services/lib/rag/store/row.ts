/** Heads, ids, entries and contents as bytes, in the form that both stores keep. */
import { createHash } from 'node:crypto';
import { ServingError } from '../../process/errors.ts';
import { normalisePath } from './path-form.ts';
import type {
  ChunkContent,
  ChunkEntry,
  ChunkRow,
  IndexHead,
  IndexSnapshot,
  LeftOut,
  RowPart,
  RowRead,
} from './store.ts';
import { indexHead, leftOut } from './store.ts';
import { decodeHalves, encodeHalves } from './vector-codec.ts';

const ID_BYTES = 32;
const SIZES_BYTES = 8;
const WITH_EMBEDDINGS = '+embeddings';
/**
 * The fingerprint of rows that hold text and no vector: a bundle without encoder and projector makes them. An index of
 * such rows serves lexical retrieval and context as text. For a bundle with a projector it is one of another encoder:
 * text is served as before, vectors are not, and the next index run encodes all chunks.
 */
export const NO_VECTORS = 'none';

/** @param ids in hex. */
export const packIds = (ids: Iterable<string>) => Buffer.from([...ids].join(''), 'hex');

/** The id (hex) of the chunk at `ordinal`. */
export const idAt = (packed: Buffer, ordinal: number) =>
  packed.toString('hex', ordinal * ID_BYTES, (ordinal + 1) * ID_BYTES);

/**
 * The id (hex) of the row of a file: SHA-256 over its path and the ids of its chunks. A reader that has the ids of a
 * version finds the row by it, and the file has another row whenever a chunk of it changes.
 * @param ids of its chunks, in the order of lines, packed.
 */
export const fileIdOf = (path: string, ids: Buffer) =>
  createHash('sha256').update(`file\0${path}\0`).update(ids).digest('hex');

/** The ids of chunks from `start` to before `end`, packed. */
export const idsWithin = (packed: Buffer, start: number, end: number) =>
  packed.subarray(start * ID_BYTES, end * ID_BYTES);

/** All ids that versions name. @param fingerprint leaves out versions with another fingerprint, if given. */
export function idsOf(versions: readonly IndexSnapshot[], encoding: 'hex' | 'latin1', fingerprint?: string) {
  const named = new Set<string>();
  for (const { head, ids } of versions) {
    if (fingerprint !== undefined && head.fingerprint !== fingerprint) continue;
    for (let at = 0; at < ids.length; at += ID_BYTES) named.add(ids.toString(encoding, at, at + ID_BYTES));
  }
  return named;
}

const invalid = (what: string, cause?: unknown) =>
  new ServingError('store_invalid', `the store holds ${what}`, { cause });

export const encodeHead = (head: IndexHead) => Buffer.from(JSON.stringify(head));

/** @throws ServingError store_invalid. */
export function decodeHead(repo: string, bytes: Buffer): IndexHead {
  try {
    return indexHead.parse(JSON.parse(bytes.toString()));
  } catch (error) {
    throw invalid(`an unreadable head of ${repo}`, error);
  }
}

export const encodeLeftOut = (value: LeftOut) => Buffer.from(JSON.stringify(value));

/** @throws ServingError store_invalid. */
export function decodeLeftOut(repo: string, bytes: Buffer): LeftOut {
  try {
    return leftOut.parse(JSON.parse(bytes.toString()));
  } catch (error) {
    throw invalid(`an unreadable list of the files that ${repo} leaves out`, error);
  }
}

/** @throws ServingError store_invalid if head and ids disagree. */
export function assertIds(repo: string, head: IndexHead, ids: Buffer): Buffer {
  const { chunks, fileRows = 0 } = head;
  if (ids.length !== (chunks + fileRows) * ID_BYTES) {
    const rows = fileRows === 0 ? `${chunks} chunks` : `${chunks} chunks and ${fileRows} files`;
    throw invalid(`${ids.length} bytes of chunk ids for ${repo}, whose head names ${rows}`);
  }
  return ids;
}

/** Encodes an entry as JSON [path, startLine, endLine, "token token …"]: tokens hold no spaces. */
export const encodeEntry = ({ path, startLine, endLine, tokens }: Omit<ChunkEntry, 'id'>) =>
  Buffer.from(JSON.stringify([path, startLine, endLine, tokens.join(' ')]));

/** @throws ServingError store_invalid. */
export function decodeEntry(id: string, bytes: Buffer): ChunkEntry {
  const unreadable = (why: string, cause?: unknown) => invalid(`an unreadable entry of chunk ${id}: ${why}`, cause);
  let fields: unknown;
  try {
    fields = JSON.parse(UTF8.decode(bytes));
  } catch (error) {
    throw unreadable('it is not JSON in UTF-8', error);
  }
  const [path, startLine, endLine, tokens] = Array.isArray(fields) ? fields : [];
  const normal = typeof path === 'string' ? normalisePath(path) : undefined;
  if (normal === undefined) throw unreadable('it does not name a file');
  if (!isLine(startLine) || !isLine(endLine) || startLine > endLine) throw unreadable('its lines are not a range');
  if (typeof tokens !== 'string') throw unreadable('it does not list identifiers');
  return { id, path: normal, startLine, endLine, tokens: tokens === '' ? [] : tokens.split(' ') };
}

const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

const isLine = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 1;

/**
 * Encodes a content, little-endian: the sizes of vector and embedding in bytes (two uint32), the vector and the
 * embedding as fp16, the text as UTF-8.
 */
export function encodeContent({ chunk, vector, embedding }: ChunkRow): Buffer {
  const halves = [vector, embedding ?? new Float32Array(0)].map(encodeHalves);
  const sizes = Buffer.allocUnsafe(SIZES_BYTES);
  for (const [i, { length }] of halves.entries()) sizes.writeUInt32LE(length, 4 * i);
  return Buffer.concat([sizes, ...halves, Buffer.from(chunk.text)]);
}

/**
 * The bytes of a content that hold one part: the sizes and the vectors, or the sizes and the text. The script in
 * redis-store.ts does the same on the server. A content whose sizes reach beyond its end is cut so that it cannot be
 * decoded.
 */
export function partOf(bytes: Buffer, part: RowPart | undefined): Buffer {
  if (part === undefined || bytes.length < SIZES_BYTES) return bytes;
  const end = SIZES_BYTES + bytes.readUInt32LE() + bytes.readUInt32LE(4);
  if (end > bytes.length) return bytes.subarray(0, SIZES_BYTES - 1);
  if (part === 'vectors') return bytes.subarray(0, end);
  return Buffer.concat([bytes.subarray(0, SIZES_BYTES), bytes.subarray(end)]);
}

/**
 * @param part of the content that `bytes` holds: see {@link partOf}.
 * @throws ServingError store_invalid.
 */
export function decodeContent(id: string, bytes: Buffer, part?: RowPart): ChunkContent {
  const unreadable = (why: string, cause?: unknown) => invalid(`an unreadable row of chunk ${id}: ${why}`, cause);
  if (bytes.length < SIZES_BYTES) throw unreadable('it is too short');
  const [vectorBytes, embeddingBytes] = part === 'text' ? [0, 0] : [bytes.readUInt32LE(), bytes.readUInt32LE(4)];
  const vectorEnd = SIZES_BYTES + vectorBytes;
  const end = vectorEnd + embeddingBytes;
  if (vectorBytes % 2 !== 0 || embeddingBytes % 2 !== 0 || end > bytes.length) {
    throw unreadable('the sizes of its vectors are wrong');
  }
  const vector = decodeHalves(bytes.subarray(SIZES_BYTES, vectorEnd));
  const embedding = embeddingBytes === 0 ? undefined : decodeHalves(bytes.subarray(vectorEnd, end));
  if (!vector.every(Number.isFinite) || embedding?.every(Number.isFinite) === false) {
    throw unreadable('a vector holds a number that is not finite');
  }
  try {
    return { vector, embedding, text: UTF8.decode(bytes.subarray(end)) };
  } catch (error) {
    throw unreadable('its text is not UTF-8', error);
  }
}

/** Whether entry and content of a chunk can be read: an index run makes again what cannot. */
export function isSound(id: string, entry: Buffer | undefined, content: Buffer | undefined): boolean {
  if (entry === undefined || content === undefined) return false;
  try {
    decodeEntry(id, entry);
    decodeContent(id, content);
    return true;
  } catch {
    return false;
  }
}

/** Decides which rows a read still has bytes for. The script in redis-store.ts does the same on the server. */
export class RowBudget {
  readonly #rowBytes: number;
  #left: number;

  constructor({ rowBytes = Infinity, bytes = Infinity }: RowRead) {
    this.#rowBytes = rowBytes;
    this.#left = bytes;
  }

  /** The row, or why it is not given. No row is given after the first one for which no bytes were left. */
  take(bytes: Buffer | undefined): StoredRow {
    if (bytes === undefined) return undefined;
    if (this.#left > 0 && bytes.length > this.#rowBytes) return bytes.length;
    if (bytes.length > this.#left) this.#left = 0;
    if (this.#left === 0) return LATER;
    this.#left -= bytes.length;
    return bytes;
  }
}

/** Stands for a row that was not given because no bytes were left for it. */
const LATER = -1;

/** A row as a store gives it; its size if it is too large, or {@link LATER}; undefined if it is not there. */
export type StoredRow = Buffer | number | undefined;

/**
 * Decodes what a store has given for `ids`.
 * @throws ServingError store_invalid for a row that cannot be given, if nobody wants to be told of it.
 */
export function decodeRows<T>(
  ids: readonly string[],
  rows: readonly StoredRow[],
  { rowBytes = Infinity, onLeftOut, onBytes }: RowRead,
  decode: (id: string, bytes: Buffer) => T,
): (T | undefined)[] {
  onBytes?.(rows.reduce<number>((sum, row) => sum + (typeof row === 'object' ? row.length : 0), 0));
  return rows.map((row, i) => {
    const id = ids[i]!;
    if (row === undefined) return undefined;
    if (typeof row !== 'number') {
      try {
        return decode(id, row);
      } catch (error) {
        if (onLeftOut === undefined) throw error;
        onLeftOut({ id, reason: 'damaged', why: (error as Error).message });
        return undefined;
      }
    }
    const reason = row === LATER ? 'later' : 'too_large';
    const why =
      reason === 'later'
        ? `the read had no bytes left for the row of chunk ${id}`
        : `the row of chunk ${id} has ${row} bytes, more than ${rowBytes}`;
    if (onLeftOut === undefined) throw new ServingError('store_invalid', why);
    onLeftOut({ id, reason, why });
    return undefined;
  });
}

/**
 * The fingerprint of rows that also hold the encoder's embedding. It differs from that of rows without, so an index
 * that begins to need embeddings finds none of its rows stored and encodes them again.
 */
export const withEmbeddings = (fingerprint: string) => `${contextFingerprint(fingerprint)}${WITH_EMBEDDINGS}`;

/** The fingerprint of encoder and projector, from that of rows. */
export const contextFingerprint = (fingerprint: string) =>
  holdsEmbeddings(fingerprint) ? fingerprint.slice(0, -WITH_EMBEDDINGS.length) : fingerprint;

export const holdsEmbeddings = (fingerprint: string) => fingerprint.endsWith(WITH_EMBEDDINGS);
