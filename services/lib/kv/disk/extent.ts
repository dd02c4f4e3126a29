/**
 * What one file of KV on disk holds: an *extent*, up to {@link ExtentForm.blocks} whole blocks of a prompt. Extents
 * begin at multiples of that number, so that prompts which begin alike have their first extents in common. The last
 * extent of a prompt may hold fewer blocks.
 *
 *     bytes 0-7      "LLVKV\0\0\1"
 *     8-11           CRC-32 of bytes 12-1023
 *     12-43          SHA-256 of all that the values depend on besides the prompt (see {@link formOf})
 *     44-47, 48-51   first block, number of blocks
 *     52-55, 56-59   CRC-32 and length of the values
 *     60-63          0
 *     64-            hash of each block (prefix.ts), 32 bytes each; then 0
 *     1024-          the values: the frames of `planFrames`, each row in the form of its {@link WireType}
 *
 * Numbers are 32-bit, little-endian. A block's hash covers the salt of the tenant, and all token ids and soft tokens up
 * to the block's end: a file whose hashes are those of a prompt holds that prompt's KV.
 */
import { createHash } from 'node:crypto';
import { crc32 } from 'node:zlib';
import { FRAME_BYTES, type KvLayout, type KvRange, planFrames, rowCount } from '../layout.ts';
import { BLOCK_TOKENS } from '../prefix.ts';
import { vectorBytes, type WireType } from '../wire.ts';

export const HEADER_BYTES = 1024;
const MAGIC = Buffer.from('LLVKV\0\0\x01', 'latin1');
const HASHES_FROM = 64;
const HASH_BYTES = 32;

/** Blocks of an extent, at most: 256 tokens. */
const MOST_BLOCKS = 16;
/** Aim for the size of an extent. Larger ones would be read a few at a time, smaller ones cost a call each. */
const EXTENT_BYTES = 8 << 20;

/** All that the values of a prompt's KV depend on besides the prompt. */
export interface KvOrigin {
  /** Fingerprint of the bundle. */
  readonly fingerprint: string;
  /** What computes it, in words: library, weights, device. Two that differ may round differently. */
  readonly computedBy: string;
}

/** The form of the extents that a worker writes and reads. */
export interface ExtentForm {
  /** SHA-256 of the origin, the layout and the type, in hex: extents of another one are not this worker's. */
  readonly digest: string;
  readonly layout: KvLayout;
  /** The form in which values lie on disk. */
  readonly type: WireType;
  /** Blocks of an extent. */
  readonly blocks: number;
  /** Bytes of the largest file. */
  readonly fileBytes: number;
}

export function formOf(origin: KvOrigin, layout: KvLayout, type: WireType): ExtentForm {
  const { layers, kvHeads, headDim, type: computed = 'float32' } = layout;
  const parts = [
    MAGIC.toString('latin1'),
    origin.fingerprint,
    origin.computedBy,
    layers,
    kvHeads,
    headDim,
    computed,
    type,
  ];
  const digest = createHash('sha256').update(JSON.stringify(parts)).digest('hex');
  const blockBytes = rowCount(layout) * BLOCK_TOKENS * vectorBytes(type, headDim);
  const blocks = Math.max(1, Math.min(MOST_BLOCKS, Math.floor(EXTENT_BYTES / blockBytes)));
  return { digest, layout, type, blocks, fileBytes: HEADER_BYTES + blocks * blockBytes };
}

/** What stands in a file before the values. */
export interface ExtentHeader {
  /** Index in the prompt of its first block. */
  readonly first: number;
  /** Hash of each of its blocks. */
  readonly hashes: readonly string[];
  /** CRC-32 of the values. */
  readonly crc32: number;
}

/** Bytes of the values of so many blocks. */
export const valueBytes = ({ layout, type }: ExtentForm, blocks: number) =>
  rowCount(layout) * blocks * BLOCK_TOKENS * vectorBytes(type, layout.headDim);

/** The parts of an extent's values in the order in which they lie: at most a MiB in the pool each. */
export function partsOf({ layout }: ExtentForm, first: number, blocks: number): KvRange[] {
  return planFrames(layout, first * BLOCK_TOKENS, (first + blocks) * BLOCK_TOKENS, FRAME_BYTES);
}

/** @param to at least {@link HEADER_BYTES} long. */
export function writeHeader(form: ExtentForm, { first, hashes, crc32: crc }: ExtentHeader, to: Buffer): void {
  to.fill(0, 0, HEADER_BYTES);
  MAGIC.copy(to);
  to.write(form.digest, 12, 'hex');
  to.writeUInt32LE(first, 44);
  to.writeUInt32LE(hashes.length, 48);
  to.writeUInt32LE(crc, 52);
  to.writeUInt32LE(valueBytes(form, hashes.length), 56);
  for (const [i, hash] of hashes.entries()) to.write(hash, HASHES_FROM + i * HASH_BYTES, 'base64');
  to.writeUInt32LE(crc32(to.subarray(12, HEADER_BYTES)), 8);
}

/**
 * Reads a header; undefined where it is damaged, or of another form than this worker's.
 * @param fileBytes length of the whole file.
 */
export function readHeader(form: ExtentForm, from: Buffer, fileBytes: number): ExtentHeader | undefined {
  if (from.length < HEADER_BYTES || !from.subarray(0, 8).equals(MAGIC)) return undefined;
  if (from.readUInt32LE(8) !== crc32(from.subarray(12, HEADER_BYTES))) return undefined;
  if (from.toString('hex', 12, 44) !== form.digest) return undefined;
  const [first, blocks] = [from.readUInt32LE(44), from.readUInt32LE(48)];
  const bytes = valueBytes(form, blocks);
  const fits = blocks >= 1 && blocks <= form.blocks && first % form.blocks === 0;
  if (!fits || from.readUInt32LE(56) !== bytes || fileBytes !== HEADER_BYTES + bytes) return undefined;
  const hashes = Array.from({ length: blocks }, (_, i) => {
    const start = HASHES_FROM + i * HASH_BYTES;
    return from.toString('base64', start, start + HASH_BYTES);
  });
  return { first, hashes, crc32: from.readUInt32LE(52) };
}
