/**
 * Rounds weights to fewer bits, in one of two forms.
 *
 * Blocks: 4 or 8 bits with a scale for each block along the input dimension, in the layout of ONNX Runtime's
 * MatMulNBits. They are symmetric, so that the zero point is the default 2^(bits-1) and takes no space. Channels: 8
 * bits with a scale for each output, for DynamicQuantizeMatMul, which also rounds the activations to 8 bits (W8A8).
 */
import { nearestHalf } from '../../numeric/half.ts';
import type { BlockLevels } from '../checkpoint/ggml-types.ts';

export interface BlockFormat {
  readonly bits: 4 | 8;
  /** Weights that share one scale: a power of two from 16 on. */
  readonly block: number;
}

export interface QuantizedWeight {
  /** [rows, columns / block, block * bits / 8]; the first of two 4-bit values in a byte is in the low half. */
  readonly packed: Uint8Array;
  /** [rows, columns / block] */
  readonly scales: Float32Array;
}

/** The largest block up to `block` that divides `columns`; undefined if even 16 does not. */
export function blockThatDivides(columns: number, block: number): number | undefined {
  for (let size = block; size >= 16; size /= 2) if (columns % size === 0) return size;
  return undefined;
}

/**
 * Shares of the block's range that are tried for its scale: clipping the largest value a little often rounds the others
 * better. A wider search changed the error by less than 1 %.
 */
const CLIPS = [1, 0.95, 0.9, 0.85, 0.8, 0.75];

/**
 * @param weight [rows, columns], where columns is a multiple of the block.
 * @param floats the type in which the scales are stored: they have its precision, and levels are chosen for them.
 */
export function quantize(
  weight: Float32Array,
  { bits, block }: BlockFormat,
  floats: 'float32' | 'float16' = 'float32',
): QuantizedWeight {
  const rounded = floats === 'float32' ? Math.fround : nearestHalf;
  const half = 2 ** (bits - 1);
  const top = 2 * half - 1;
  const blocks = weight.length / block;
  const scales = new Float32Array(blocks);
  const packed = new Uint8Array((weight.length * bits) / 8);
  // With 8 bits, clipping gains nothing.
  const clips = bits === 4 ? CLIPS : [1];
  for (let b = 0; b < blocks; b++) {
    const start = b * block;
    // The value of largest magnitude maps to -half exactly: the range is one step longer on that side.
    let extreme = 0;
    for (let i = start; i < start + block; i++) if (Math.abs(weight[i]!) > Math.abs(extreme)) extreme = weight[i]!;
    const scale = bestScale(weight, start, block, extreme / -half, half, clips, rounded);
    scales[b] = scale;
    const inverse = scale === 0 ? 0 : 1 / scale;
    for (let i = start; i < start + block; i++) {
      const level = Math.max(0, Math.min(top, Math.round(weight[i]! * inverse) + half));
      if (bits === 8) packed[i] = level;
      else packed[i >> 1]! |= i & 1 ? level << 4 : level;
    }
  }
  return { packed, scales };
}

/** Levels that a checkpoint holds, in the form of quantised ones: the same numbers, with as many bits or more. */
export function packLevels({ levels, scales }: BlockLevels, bits: BlockFormat['bits']): QuantizedWeight {
  const half = 2 ** (bits - 1);
  const packed = new Uint8Array((levels.length * bits) / 8);
  for (const [i, level] of levels.entries()) {
    if (bits === 8) packed[i] = level + half;
    else packed[i >> 1]! |= i & 1 ? (level + half) << 4 : level + half;
  }
  return { packed, scales };
}

/** The scale, among the clips of `widest`, with the least squared error over one block. */
function bestScale(
  weight: Float32Array,
  start: number,
  block: number,
  widest: number,
  half: number,
  clips: readonly number[],
  rounded: (value: number) => number,
): number {
  if (clips.length === 1 || widest === 0) return rounded(widest);
  let best = widest;
  let least = Number.POSITIVE_INFINITY;
  for (const clip of clips) {
    const scale = rounded(widest * clip);
    const inverse = scale === 0 ? 0 : 1 / scale;
    let error = 0;
    for (let i = start; i < start + block; i++) {
      const level = Math.max(-half, Math.min(half - 1, Math.round(weight[i]! * inverse)));
      const difference = weight[i]! - level * scale;
      error += difference * difference;
    }
    if (error < least) [least, best] = [error, scale];
  }
  return best;
}

/**
 * Rounds to levels from -127 to 127, with one scale per output channel.
 * @param weight [rows, columns]
 * @returns levels [columns, rows], because DynamicQuantizeMatMul multiplies from the right, and scales [rows].
 */
export function quantizeChannels(weight: Float32Array, rows: number): { levels: Int8Array; scales: Float32Array } {
  const columns = weight.length / rows;
  const levels = new Int8Array(weight.length);
  const scales = new Float32Array(rows);
  for (let row = 0; row < rows; row++) {
    let largest = 0;
    for (let i = row * columns; i < (row + 1) * columns; i++) largest = Math.max(largest, Math.abs(weight[i]!));
    scales[row] = largest / 127;
    const inverse = largest === 0 ? 0 : 127 / largest;
    for (let column = 0; column < columns; column++) {
      levels[column * rows + row] = Math.round(weight[row * columns + column]! * inverse);
    }
  }
  return { levels, scales };
}
