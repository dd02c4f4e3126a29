/** How the weights of a bundle are stored, by its precision. */
import { ServingError } from '../../process/errors.ts';
import type { Graph } from '../graph/graph.ts';
import type { LayerFormats, TableFormat } from '../graph/linear.ts';
import { PRECISIONS, type Precision } from './choices.ts';

const DEFAULT_BLOCK = 128;
/**
 * Blocks for which CUDA has fast kernels of MatMulNBits. They also want a matrix whose number of outputs is a multiple
 * of 64 (4 bits) or 32 (8 bits), as all matrices of the published shapes are; others take a slower kernel.
 */
const CUDA_BLOCKS: readonly number[] = [32, 64, 128];

interface WeightFormats {
  readonly layers: LayerFormats;
  /** The embedding table and the output projection. */
  readonly vocabulary: TableFormat;
  readonly encoder: TableFormat;
  readonly floats?: Graph['floats'];
}

/**
 * `fp16`: the whole language model in half precision, for GPUs (a CPU converts it to 32 bits as it computes).
 * `int4`: the whole language model in 4 bits, for speed.
 * `int8-fp16`, `int4-fp16`: the same weights, with scales and activations in half precision, for GPUs.
 * `mixed`: like `int4`, but with 8 bits for the vocabulary, where one matrix decides every token, and for the first and
 * the last layer.
 * The encoder keeps 8 bits in both `mixed` and `int4`, because a projector was trained on its vectors; the projector is
 * always in 32-bit floats.
 * @param block weights that share a scale.
 * @throws ServingError config_invalid for an unknown precision or block.
 */
export function weightFormats(precision: Precision, layers: number, block = DEFAULT_BLOCK): WeightFormats {
  if (![16, 32, 64, 128, 256].includes(block)) {
    throw new ServingError('config_invalid', `block ${block} is not one of 16, 32, 64, 128, 256`);
  }
  const floats = precision.endsWith('-fp16') ? 'float16' : 'float32';
  if (floats === 'float16' && !CUDA_BLOCKS.includes(block)) {
    throw new ServingError(
      'config_invalid',
      `block ${block} is not one of ${CUDA_BLOCKS.join(', ')}, which the fast kernels of CUDA take: use one of these with --precision ${precision}`,
    );
  }
  const eight = { bits: 8, block } as const;
  const four = { bits: 4, block } as const;
  switch (precision) {
    case 'fp32':
      return { layers: 'fp32', vocabulary: 'fp32', encoder: 'fp32' };
    case 'fp16':
      return { layers: 'fp32', vocabulary: 'fp32', encoder: 'fp32', floats: 'float16' };
    case 'int8':
    case 'int8-fp16':
      return { layers: eight, vocabulary: eight, encoder: eight, floats };
    case 'mixed':
      return { layers: (i) => (i === 0 || i === layers - 1 ? eight : four), vocabulary: eight, encoder: eight };
    case 'int4':
    case 'int4-fp16':
      return { layers: four, vocabulary: four, encoder: eight, floats };
    default:
      throw new ServingError('config_invalid', `precision ${precision} is not one of ${PRECISIONS.join(', ')}`);
  }
}

/**
 * Formats of the matrices for prompts. Where no norm precedes a matrix (`o_proj`, `down_proj`), one token's row may be
 * a thousand times as large as the others', so each row has a scale of its own. On tiny-coder that gives a KL of
 * 5.7e-4, against 1.7e-3 with one scale per run (and 2.3e-2 for int4), for 2.5 % of a layer's time. Scales by row
 * everywhere would give 4.4e-4 for 10 % of the time, down_proj in 8-bit blocks 5.3e-4 for 15 %.
 */
export const PROMPT_FORMATS: LayerFormats = (_layer, matrix) =>
  matrix === 'o_proj' || matrix === 'down_proj' ? 'w8a8 by row' : 'w8a8';
