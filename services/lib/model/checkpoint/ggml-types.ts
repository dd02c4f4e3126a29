/**
 * The types in which GGUF files store numbers, as llama.cpp defines them: floats, and blocks of 32 or 256 weights with
 * scales of their own. Every value becomes the 32-bit float that llama.cpp computes for it, bit by bit.
 */
import { widen } from '../../numeric/half.ts';

/** Weights that are whole numbers times a scale: 4-bit levels go from -8 to 7, 8-bit ones from -128 to 127. */
export interface BlockLevels {
  readonly bits: 4 | 8;
  /** One for each weight. */
  readonly levels: Int8Array;
  /** One for each 32 weights. */
  readonly scales: Float32Array;
}

export interface GgmlType {
  readonly name: string;
  /** Numbers of a block, and the bytes that it takes. */
  readonly block: number;
  readonly bytes: number;
  /** Writes the values of whole blocks. */
  readonly decode: (from: Uint8Array, to: Float32Array) => void;
  /** The levels and scales of whole blocks, where that is all that they hold. */
  readonly levels?: (from: Uint8Array) => BlockLevels;
}

/** Weights that share a scale in the simple types. */
export const GGML_BLOCK = 32;
/** Weights of a super-block in the K-types, which have eight blocks of 32 or sixteen of 16. */
const SUPER_BLOCK = 256;

const oneHalf = new Uint16Array(1);
const one = new Float32Array(1);
function half(bytes: Uint8Array, at: number): number {
  oneHalf[0] = bytes[at]! | (bytes[at + 1]! << 8);
  widen(oneHalf, one);
  return one[0]!;
}

/** A decoder that writes block by block. */
const byBlock =
  (block: number, bytes: number, decode: (from: Uint8Array, at: number, to: Float32Array, out: number) => void) =>
  (from: Uint8Array, to: Float32Array) => {
    for (let at = 0, out = 0; out < to.length; at += bytes, out += block) decode(from, at, to, out);
  };

/** A 4-bit number of 16 bytes: the first 16 lie in the low halves, the others in the high ones. */
const nibble = (bytes: Uint8Array, at: number, i: number) => (i < 16 ? bytes[at + i]! & 15 : bytes[at + i - 16]! >> 4);
/** The bit of a 32-bit number that belongs to a weight. */
const bit = (bytes: Uint8Array, at: number, i: number) => (bytes[at + (i >> 3)]! >> (i & 7)) & 1;
const int8 = (byte: number) => (byte << 24) >> 24;

/** Blocks of 32 with a scale, and with a minimum if `hasMinimum`; levels of 5 bits have their fifth apart. */
function simple(name: string, bits: 4 | 5, hasMinimum: boolean): GgmlType {
  const levelsAt = (hasMinimum ? 4 : 2) + (bits === 5 ? 4 : 0);
  const bytes = levelsAt + 16;
  const zero = hasMinimum ? 0 : 2 ** (bits - 1);
  const level = (from: Uint8Array, at: number, i: number) =>
    nibble(from, at + levelsAt, i) + (bits === 5 ? bit(from, at + levelsAt - 4, i) << 4 : 0) - zero;
  const decode = byBlock(GGML_BLOCK, bytes, (from, at, to, out) => {
    const scale = half(from, at);
    // Without a minimum nothing is added: -0 would become 0.
    const minimum = hasMinimum ? half(from, at + 2) : undefined;
    for (let i = 0; i < GGML_BLOCK; i++) {
      const value = level(from, at, i) * scale;
      to[out + i] = minimum === undefined ? value : value + minimum;
    }
  });
  if (hasMinimum) return { name, block: GGML_BLOCK, bytes, decode };
  // Five bits need the room of eight.
  return { name, block: GGML_BLOCK, bytes, decode, levels: levelReader(bits === 4 ? 4 : 8, bytes, level) };
}

const levelReader =
  (bits: 4 | 8, bytes: number, level: (from: Uint8Array, at: number, i: number) => number) =>
  (from: Uint8Array): BlockLevels => {
    const blocks = from.length / bytes;
    const levels = new Int8Array(blocks * GGML_BLOCK);
    const scales = Float32Array.from({ length: blocks }, (_, b) => half(from, b * bytes));
    for (let b = 0; b < blocks; b++) {
      for (let i = 0; i < GGML_BLOCK; i++) levels[b * GGML_BLOCK + i] = level(from, b * bytes, i);
    }
    return { bits, levels, scales };
  };

const Q8_0_BYTES = 34;
const q8Level = (from: Uint8Array, at: number, i: number) => int8(from[at + 2 + i]!);
const q8_0: GgmlType = {
  name: 'Q8_0',
  block: GGML_BLOCK,
  bytes: Q8_0_BYTES,
  decode: byBlock(GGML_BLOCK, Q8_0_BYTES, (from, at, to, out) => {
    const scale = half(from, at);
    for (let i = 0; i < GGML_BLOCK; i++) to[out + i] = q8Level(from, at, i) * scale;
  }),
  levels: levelReader(8, Q8_0_BYTES, q8Level),
};

/** Scale and minimum of the j-th of eight blocks: 6 bits each, packed into 12 bytes. */
function scaleAndMinimum(from: Uint8Array, at: number, j: number): readonly [number, number] {
  if (j < 4) return [from[at + j]! & 63, from[at + j + 4]! & 63];
  const low = from[at + j + 4]!;
  return [(low & 15) | ((from[at + j - 4]! >> 6) << 4), (low >> 4) | ((from[at + j]! >> 6) << 4)];
}

/** Q4_K and Q5_K: scales and minima of eight blocks, which have a common scale each. */
function withMinima(name: string, bits: 4 | 5): GgmlType {
  const high = 16;
  const low = bits === 5 ? 48 : 16;
  const bytes = low + 128;
  const decode = byBlock(SUPER_BLOCK, bytes, (from, at, to, out) => {
    const [scale, minimum] = [half(from, at), half(from, at + 2)];
    for (let j = 0; j < 8; j++) {
      const [blockScale, blockMinimum] = scaleAndMinimum(from, at + 4, j);
      const [d, m] = [scale * blockScale, minimum * blockMinimum];
      for (let i = 0; i < 32; i++) {
        const byte = from[at + low + (j >> 1) * 32 + i]!;
        const level = (j & 1 ? byte >> 4 : byte & 15) + (bits === 5 ? ((from[at + high + i]! >> j) & 1) << 4 : 0);
        to[out + j * 32 + i] = d * level - m;
      }
    }
  });
  return { name, block: SUPER_BLOCK, bytes, decode };
}

/** 128 bytes with the low 4 bits of each level, 64 with the 2 high ones, 16 scales, and the scale of these. */
const q6_K: GgmlType = {
  name: 'Q6_K',
  block: SUPER_BLOCK,
  bytes: 210,
  decode: byBlock(SUPER_BLOCK, 210, (from, at, to, out) => {
    const scale = half(from, at + 208);
    for (let i = 0; i < SUPER_BLOCK; i++) {
      const [part, quarter, within] = [i >> 7, (i >> 5) & 3, i & 31];
      const low = from[at + 64 * part + 32 * (quarter & 1) + within]!;
      const high = (from[at + 128 + 32 * part + within]! >> (2 * quarter)) & 3;
      const level = ((quarter < 2 ? low & 15 : low >> 4) | (high << 4)) - 32;
      to[out + i] = scale * int8(from[at + 192 + (i >> 4)]!) * level;
    }
  }),
};

const floats = (name: string, bytes: number, decode: GgmlType['decode']): GgmlType => ({
  name,
  block: 1,
  bytes,
  decode,
});
const halves = (from: Uint8Array) => new Uint16Array(from.slice().buffer);

/** The supported types, by their numbers in a file. */
export const GGML_TYPES: ReadonlyMap<number, GgmlType> = new Map([
  [0, floats('F32', 4, (from, to) => to.set(new Float32Array(from.slice().buffer)))],
  [1, floats('F16', 2, (from, to) => widen(halves(from), to))],
  [2, simple('Q4_0', 4, false)],
  [3, simple('Q4_1', 4, true)],
  [6, simple('Q5_0', 5, false)],
  [7, simple('Q5_1', 5, true)],
  [8, q8_0],
  [12, withMinima('Q4_K', 4)],
  [13, withMinima('Q5_K', 5)],
  [14, q6_K],
  [
    30,
    floats('BF16', 2, (from, to) => {
      const bits = new Uint32Array(to.buffer, to.byteOffset, to.length);
      for (const [i, high] of halves(from).entries()) bits[i] = high << 16;
    }),
  ],
]);
