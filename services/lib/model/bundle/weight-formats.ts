/** How the weights of a bundle are stored, by its precision. */
import { ServingError } from '../../process/errors.ts';
import type { DecoderSpec } from '../checkpoint/spec.ts';
import type { Graph } from '../graph/graph.ts';
import type { LayerFormats, TableFormat } from '../graph/linear.ts';
import { PRECISIONS, type Precision } from './choices.ts';

/**
 * Weights that share a scale, unless the export says otherwise. On a CPU larger blocks are faster. For GPUs it is 32:
 * the CUDA library of ONNX Runtime 1.30 has kernels that multiply quantised weights by many rows for blocks of 32 only,
 * without zero points and without a bias in the node (it is its "compact" build of fpA_intB_gemm, which
 * engine/provider.ts switches on). They also want a matrix whose number of outputs is a multiple of 64 (4 bits) or 32
 * (8 bits), as all matrices of the published shapes are. For every other matrix a run of more than 16 rows, so each
 * prompt, writes the whole matrix in 16 bits to memory first.
 */
const DEFAULT_BLOCK = { float32: 128, float16: 32 } as const;
/** Blocks for which CUDA has a kernel that multiplies one row, or a few, without writing the matrix out first. */
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
 * @param chosen weights that share a scale; 128, and 32 for the precisions that end in `-fp16`, if not given.
 * @throws ServingError config_invalid for an unknown precision or block.
 */
export function weightFormats(precision: Precision, layers: number, chosen?: number): WeightFormats {
  const floats = precision.endsWith('-fp16') ? 'float16' : 'float32';
  const block = chosen ?? DEFAULT_BLOCK[floats];
  if (![16, 32, 64, 128, 256].includes(block)) {
    throw new ServingError('config_invalid', `block ${block} is not one of 16, 32, 64, 128, 256`);
  }
  if (floats === 'float16' && !CUDA_BLOCKS.includes(block)) {
    throw new ServingError(
      'config_invalid',
      `block ${block} is not one of ${CUDA_BLOCKS.join(', ')}, which CUDA's kernels for decode steps take: use ` +
        `one of these with --precision ${precision}`,
    );
  }
  const eight = { bits: 8, block } as const;
  const four = { bits: 4, block } as const;
  // Encoders compute in 32 bits, whatever the language model does.
  const encoder = { bits: 8, block: chosen ?? DEFAULT_BLOCK.float32 } as const;
  switch (precision) {
    case 'fp32':
      return { layers: 'fp32', vocabulary: 'fp32', encoder: 'fp32' };
    case 'fp16':
      return { layers: 'fp32', vocabulary: 'fp32', encoder: 'fp32', floats: 'float16' };
    case 'int8':
    case 'int8-fp16':
      return { layers: eight, vocabulary: eight, encoder, floats };
    case 'mixed':
      return { layers: (i) => (i === 0 || i === layers - 1 ? eight : four), vocabulary: eight, encoder };
    case 'int4':
    case 'int4-fp16':
      return { layers: four, vocabulary: four, encoder, floats };
    default:
      throw new ServingError('config_invalid', `precision ${precision} is not one of ${PRECISIONS.join(', ')}`);
  }
}

/** Outputs of a quantised matrix of which CUDA's kernels for many rows want a multiple, by bits. */
const CUDA_OUTPUTS = { 4: 64, 8: 32 } as const;

/**
 * Says to people which matrices CUDA cannot multiply by its kernels for many rows, so that every prompt writes each of
 * them out in 16 bits first; undefined for a precision that quantises nothing or that CUDA does not compute, and if
 * there is no such matrix.
 * @param block weights that share a scale, if the export names it.
 */
export function slowOnCuda(
  { heads, kvHeads, headDim, hidden, intermediate, vocab }: DecoderSpec,
  precision: Precision,
  block: number = DEFAULT_BLOCK.float16,
): string | undefined {
  const bits = { 'int4-fp16': 4, 'int8-fp16': 8 }[precision as string] as 4 | 8 | undefined;
  if (bits === undefined) return undefined;
  if (block !== DEFAULT_BLOCK.float16) {
    return (
      `--block ${block}: CUDA's fast kernels for prompts take blocks of ${DEFAULT_BLOCK.float16} only, ` +
      `and each prompt writes every matrix out in 16 bits first`
    );
  }
  const outputs = {
    q_proj: heads * headDim,
    'k_proj and v_proj': kvHeads * headDim,
    'o_proj and down_proj': hidden,
    'gate_proj and up_proj': intermediate,
    'the output projection': vocab,
  };
  const slow = Object.entries(outputs).filter(([, count]) => count % CUDA_OUTPUTS[bits] !== 0);
  if (slow.length === 0) return undefined;
  const named = slow.map(([matrix, count]) => `${matrix} (${count} outputs)`).join(', ');
  return (
    `CUDA's fast kernels for prompts take matrices whose outputs are a multiple of ${CUDA_OUTPUTS[bits]}, ` +
    `and each prompt writes ${named} out in 16 bits first: slower, and no less right; no other device cares`
  );
}

/**
 * Formats of the matrices for prompts. Where no norm precedes a matrix (`o_proj`, `down_proj`), one token's row may be
 * a thousand times as large as the others', so each row has a scale of its own. On tiny-coder that gives a KL of
 * 5.7e-4, against 1.7e-3 with one scale per run (and 2.3e-2 for int4), for 2.5 % of a layer's time. Scales by row
 * everywhere would give 4.4e-4 for 10 % of the time, down_proj in 8-bit blocks 5.3e-4 for 15 %.
 */
export const PROMPT_FORMATS: LayerFormats = (_layer, matrix) =>
  matrix === 'o_proj' || matrix === 'down_proj' ? 'w8a8 by row' : 'w8a8';
