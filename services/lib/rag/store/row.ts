/** How both stores spell heads, ids, entries and contents as bytes. */
import { ServingError } from '../../process/errors.ts';
import type { ChunkContent, ChunkEntry, IndexHead, IndexSnapshot, Row } from './store.ts';
import { indexHead } from './store.ts';
import { decodeHalves, encodeHalves } from './vector-codec.ts';

const ID_BYTES = 32;
const SIZES_BYTES = 8;
const WITH_EMBEDDINGS = '+embeddings';

/** @param ids in hex. */
export const packIds = (ids: Iterable<string>) => Buffer.from([...ids].join(''), 'hex');

/** The id (hex) of the chunk at `ordinal`. */
export const idAt = (packed: Buffer, ordinal: number) =>
  packed.toString('hex', ordinal * ID_BYTES, (ordinal + 1) * ID_BYTES);

/** All ids that versions name. @param fingerprint of those that count; all do where it is not given. */
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

/** @throws ServingError store_invalid where head and ids disagree. */
export function assertIds(repo: string, head: IndexHead, ids: Buffer): Buffer {
  if (ids.length !== head.chunks * ID_BYTES) {
    throw invalid(`${ids.length} bytes of chunk ids for ${repo}, whose head names ${head.chunks} chunks`);
  }
  return ids;
}

/** JSON [path, startLine, endLine, "token token …"]: tokens hold no spaces. */
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

/** uint32 bytes of the vector, uint32 bytes of the embedding, both as fp16, the text as UTF-8; little-endian. */
export function encodeContent({ chunk, vector, embedding }: Row): Buffer {
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
 * The fingerprint under which rows lie that also hold the encoder's embedding: an index that comes to want embeddings
 * finds none of its rows stored, and encodes them again.
 */
export const withEmbeddings = (fingerprint: string) => `${contextFingerprint(fingerprint)}${WITH_EMBEDDINGS}`;

/** The fingerprint of encoder and projector in that of rows. */
export const contextFingerprint = (fingerprint: string) =>
  holdsEmbeddings(fingerprint) ? fingerprint.slice(0, -WITH_EMBEDDINGS.length) : fingerprint;

export const holdsEmbeddings = (fingerprint: string) => fingerprint.endsWith(WITH_EMBEDDINGS);
