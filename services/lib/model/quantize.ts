/**
 * Round-to-nearest weights of 4 or 8 bits in blocks along the input dimension, in the layout of ONNX Runtime's
 * MatMulNBits: symmetric, so that the zero point is the default 2^(bits-1) and takes no space.
 */

export interface BlockFormat {
  readonly bits: 4 | 8;
  /** Weights that share one scale: a power of two from 16 on. */
  readonly block: number;
}

export interface QuantizedWeight {
  /** [rows, columns / block, block * bits / 8]; of two 4-bit values in a byte the first is the low one. */
  readonly packed: Uint8Array;
  /** [rows, columns / block] */
  readonly scales: Float32Array;
}

/** The largest block not above `block` that divides `columns`, or undefined if even 16 does not. */
export function blockThatDivides(columns: number, block: number): number | undefined {
  for (let size = block; size >= 16; size /= 2) if (columns % size === 0) return size;
  return undefined;
}

/** @param weight [rows, columns]; columns is a multiple of the block */
export function quantize(weight: Float32Array, { bits, block }: BlockFormat): QuantizedWeight {
  const half = 2 ** (bits - 1);
  const top = 2 * half - 1;
  const blocks = weight.length / block;
  const scales = new Float32Array(blocks);
  const packed = new Uint8Array((weight.length * bits) / 8);
  for (let b = 0; b < blocks; b++) {
    const start = b * block;
    // The value of largest magnitude maps to -half exactly: the range is one step longer on that side.
    let extreme = 0;
    for (let i = start; i < start + block; i++) if (Math.abs(weight[i]!) > Math.abs(extreme)) extreme = weight[i]!;
    const scale = Math.fround(extreme / -half);
    scales[b] = scale;
    const inverse = scale === 0 ? 0 : 1 / scale;
    for (let i = start; i < start + block; i++) {
      const level = Math.min(top, Math.round(weight[i]! * inverse) + half);
      if (bits === 8) packed[i] = level;
      else packed[i >> 1]! |= i & 1 ? level << 4 : level;
    }
  }
  return { packed, scales };
}
