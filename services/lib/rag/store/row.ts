/** Heads, ids, entries and contents as bytes, in the form that both stores keep. */
import { ServingError } from '../../process/errors.ts';
import type { ChunkContent, ChunkEntry, ChunkRow, IndexHead, IndexSnapshot } from './store.ts';
import { indexHead } from './store.ts';
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

/** @throws ServingError store_invalid if head and ids disagree. */
export function assertIds(repo: string, head: IndexHead, ids: Buffer): Buffer {
  if (ids.length !== head.chunks * ID_BYTES) {
    throw invalid(`${ids.length} bytes of chunk ids for ${repo}, whose head names ${head.chunks} chunks`);
  }
  return ids;
}

/** Encodes an entry as JSON [path, startLine, endLine, "token token …"]: tokens hold no spaces. */
export const encodeEntry = ({ path, startLine, endLine, tokens }: Omit<ChunkEntry, 'id'>) =>
  Buffer.from(JSON.stringify([path, startLine, endLine, tokens.join(' ')]));

/** @throws ServingError store_invalid. */
export function decodeEntry(id: string, bytes: Buffer): ChunkEntry {
  let fields: unknown;
  try {
    fields = JSON.parse(bytes.toString());
  } catch (error) {
    throw invalid(`an unreadable entry of chunk ${id}`, error);
  }
  const [path, startLine, endLine, tokens] = Array.isArray(fields) ? fields : [];
  if (typeof path !== 'string' || typeof tokens !== 'string' || !Number.isInteger(startLine + endLine)) {
    throw invalid(`an unreadable entry of chunk ${id}`);
  }
  return { id, path, startLine, endLine, tokens: tokens === '' ? [] : tokens.split(' ') };
}

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

/** @throws ServingError store_invalid. */
export function decodeContent(id: string, bytes: Buffer): ChunkContent {
  const [vectorBytes, embeddingBytes] =
    bytes.length < SIZES_BYTES ? [1, 1] : [bytes.readUInt32LE(), bytes.readUInt32LE(4)];
  const vectorEnd = SIZES_BYTES + vectorBytes;
  const end = vectorEnd + embeddingBytes;
  if (vectorBytes % 2 !== 0 || embeddingBytes % 2 !== 0 || end > bytes.length) {
    throw invalid(`an unreadable row of chunk ${id}`);
  }
  return {
    vector: decodeHalves(bytes.subarray(SIZES_BYTES, vectorEnd)),
    embedding: embeddingBytes === 0 ? undefined : decodeHalves(bytes.subarray(vectorEnd, end)),
    text: bytes.toString('utf8', end),
  };
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
