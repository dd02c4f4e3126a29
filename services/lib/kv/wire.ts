/**
 * The form in which the values of a KV cache travel: as they are, or in fewer bytes. A *vector* is one head's key or
 * value at one position, `[head_dim]`; a row of a frame is `[position, head_dim]`, a run of vectors.
 *
 *     float32       the values; exact
 *     float16       the values rounded to nearest; values beyond +-65504 become +-65504
 *     int8          a float32 scale for each vector, and the values divided by it and rounded: the largest gets +-127
 *     int8-channel  multiples of the scales of the bundle's channels, as attention reads them; exact
 *
 * All are little-endian, like every machine that the engine runs on. For int8 the scales of a row precede its values.
 */
import { narrow, widen } from '../numeric/half.ts';
import { ServingError } from '../process/errors.ts';
import type { KvType } from './layout.ts';

/** The forms that a worker can ask for where the values are float32. */
export const WIRE_TYPES = ['float32', 'float16', 'int8'] as const;
export type WireType = (typeof WIRE_TYPES)[number] | KvType;
const ALL_TYPES: readonly WireType[] = [...WIRE_TYPES, 'int8-channel'];

/** @param name '' stands for float32. @throws ServingError kv_layout_mismatch for an unknown name. */
export function readWireType(name: string): WireType {
  if (name === '') return 'float32';
  const type = ALL_TYPES.find((each) => each === name);
  if (type !== undefined) return type;
  throw new ServingError('kv_layout_mismatch', `KV caches travel as ${ALL_TYPES.join(', ')}, not as ${name}`);
}

/** Bytes of one vector. */
export function vectorBytes(type: WireType, headDim: number): number {
  switch (type) {
    case 'float32':
      return headDim * 4;
    case 'float16':
      return headDim * 2;
    case 'int8':
      return headDim + 4;
    case 'int8-channel':
      return headDim;
  }
}

const asBytes = (floats: Float32Array) => new Uint8Array(floats.buffer, floats.byteOffset, floats.byteLength);

/**
 * Writes a row into `to`, whose length is the number of vectors times {@link vectorBytes}.
 * @param row `[vectors, head_dim]`, finite.
 */
export function encodeRow(type: WireType, row: Float32Array, headDim: number, to: Uint8Array): void {
  if (type === 'float32') {
    to.set(asBytes(row));
    return;
  }
  // Typed arrays of floats need aligned memory: other targets are written by way of a copy. (With head_dim a multiple
  // of 4 all targets are aligned.)
  const bytes = to.byteOffset % 4 === 0 ? to : new Uint8Array(to.length);
  if (type === 'float16') narrow(row, new Uint16Array(bytes.buffer, bytes.byteOffset, row.length));
  else {
    const vectors = row.length / headDim;
    const scales = new Float32Array(bytes.buffer, bytes.byteOffset, vectors);
    encodeBytes(row, headDim, scales, new Int8Array(bytes.buffer, bytes.byteOffset + vectors * 4, row.length));
  }
  if (bytes !== to) to.set(bytes);
}

/** Reads a row from bytes at any offset. @param row `[vectors, head_dim]`, written. */
export function decodeRow(type: WireType, from: Uint8Array, headDim: number, row: Float32Array): void {
  if (type === 'float32') {
    asBytes(row).set(from); // byte by byte, since `from` need not be aligned for floats
    return;
  }
  const bytes = from.byteOffset % 4 === 0 ? from : new Uint8Array(from);
  if (type === 'float16') widen(new Uint16Array(bytes.buffer, bytes.byteOffset, row.length), row);
  else {
    const vectors = row.length / headDim;
    const scales = new Float32Array(bytes.buffer, bytes.byteOffset, vectors);
    decodeBytes(scales, new Int8Array(bytes.buffer, bytes.byteOffset + vectors * 4, row.length), headDim, row);
  }
}

function encodeBytes(row: Float32Array, headDim: number, scales: Float32Array, bytes: Int8Array): void {
  for (let vector = 0, from = 0; vector < scales.length; vector++, from += headDim) {
    const end = from + headDim;
    let largest = 0;
    for (let i = from; i < end; i++) largest = Math.max(largest, Math.abs(row[i]!));
    scales[vector] = largest / 127;
    const scale = scales[vector]!; // rounded to float32, as the reader will get it
    const inverse = scale === 0 ? 0 : 1 / scale;
    // Adding 128.5 makes all values positive, so that truncating rounds to nearest.
    for (let i = from; i < end; i++) bytes[i] = ((row[i]! * inverse + 128.5) | 0) - 128;
  }
}

function decodeBytes(scales: Float32Array, bytes: Int8Array, headDim: number, row: Float32Array): void {
  for (let vector = 0, from = 0; vector < scales.length; vector++, from += headDim) {
    const scale = scales[vector]!;
    for (let i = from; i < from + headDim; i++) row[i] = bytes[i]! * scale;
  }
}
