/**
 * A matrix of weights in a graph, in 32-bit floats or quantised, used as a linear layer or as a table of embeddings.
 * Activations have any number of dimensions, the last of which is the matrix's input width.
 */
import { narrow } from '../../numeric/half.ts';
import type { TensorReader } from '../checkpoint/checkpoint.ts';
import { GGML_BLOCK } from '../checkpoint/ggml-types.ts';
import type { FloatMatrix, Graph, Value } from './graph.ts';
import {
  type BlockFormat,
  blockThatDivides,
  packLevels,
  type QuantizedWeight,
  quantize,
  quantizeChannels,
} from './quantize.ts';

/** How matrices and tables are stored. */
export type TableFormat = 'fp32' | BlockFormat;
/**
 * `w8a8` means weights and activations of 8 bits. On one core, for a matrix of 896 x 4864, it takes 0.50 of the time of
 * 4-bit blocks of 128 with 512 rows, 0.61 with 8 rows and 1.2 with one row, so it is right for prompts and wrong for
 * decoding. Activations have one scale per run, or one per row, which takes 1.09 times as long when 4864 values become
 * 896.
 */
export type WeightFormat = TableFormat | 'w8a8' | 'w8a8 by row' | NarrowFormat;
/**
 * Formats of weights that are widened to 32-bit floats each time they are multiplied by, one matrix at a time: 16-bit
 * floats, or 8 bits with one scale for each output. They are for training, where many rows share the cost of widening
 * and both directions the one copy.
 */
const NARROW_FORMATS = ['fp16', 'int8'] as const;
type NarrowFormat = (typeof NARROW_FORMATS)[number];
/** The matrices of a layer; `qkv` is one matrix for queries, keys and values. */
export type MatrixName = 'qkv' | 'q_proj' | 'k_proj' | 'v_proj' | 'o_proj' | 'gate_proj' | 'up_proj' | 'down_proj';
/** One format for all matrices, or one for each matrix of each layer. */
export type LayerFormats = WeightFormat | ((layer: number, matrix: MatrixName) => WeightFormat);

/** The use of a stored matrix: multiplying, looking rows up (a table of embeddings), or both (a tied table). */
type Use = 'multiply' | 'lookUp' | 'both';

/**
 * A matrix in the graph, in one of three forms. `floats` is stored transposed, [columns, rows]: MatMul takes
 * activations of any rank, but no transposed matrix. `table` is [rows, columns], so that rows can be looked up; it
 * multiplies activations of two dimensions only (Gemm). `blocks` is quantised.
 */
type StoredMatrix = { readonly rows: number; readonly columns: number } & (
  | { readonly kind: 'floats'; readonly weight: Value }
  | { readonly kind: 'table'; readonly weight: Value }
  | {
      readonly kind: 'blocks';
      readonly format: BlockFormat;
      readonly packed: Value;
      /** [rows, blocks], if the matrix multiplies. */
      readonly scales: Value | undefined;
      /** [rows, blocks, 1], if rows are looked up: the same numbers. A Reshape would also be folded into a copy. */
      readonly rowScales: Value | undefined;
    }
);

/** Declares a matrix. If no block divides its width, it stays in 32-bit floats. */
export function storeMatrix(graph: Graph, matrix: FloatMatrix, format: TableFormat, use: Use): StoredMatrix {
  const { name, rows, columns, read } = matrix;
  const block = format === 'fp32' ? undefined : blockThatDivides(columns, format.block);
  if (format === 'fp32' || block === undefined) {
    const weight = `${name}.weight`;
    if (use !== 'multiply') {
      return { kind: 'table', rows, columns, weight: graph.weight(weight, [rows, columns], read) };
    }
    const readTransposed = async () => transpose(await read(), rows, columns);
    return { kind: 'floats', rows, columns, weight: graph.weight(weight, [columns, rows], readTransposed) };
  }
  const { bits } = format;
  const blocks = columns / block;
  const scaleForms = [
    ...(use === 'lookUp' ? [] : [{ name: `${name}.scales`, type: graph.floats, dims: [rows, blocks] }]),
    ...(use === 'multiply' ? [] : [{ name: `${name}.row_scales`, type: graph.floats, dims: [rows, blocks, 1] }]),
  ];
  const packedForm = { name: `${name}.packed`, type: 'uint8' as const, dims: [rows, blocks, (block * bits) / 8] };
  const [packed, ...scales] = graph.weightGroup([packedForm, ...scaleForms], async () => {
    const quantized =
      (await storedBlocks(read, { bits, block })) ?? quantize(await read(), { bits, block }, graph.floats);
    const stored = graph.stored(quantized.scales);
    return [quantized.packed, ...scaleForms.map(() => stored)];
  });
  graph.matrices.set(packed!, matrix);
  return {
    kind: 'blocks',
    rows,
    columns,
    format: { bits, block },
    packed: packed!,
    scales: use === 'lookUp' ? undefined : scales[0],
    rowScales: use === 'multiply' ? undefined : scales.at(-1),
  };
}

/** A matrix that is stored in blocks already, if they fit the wanted ones: it is not rounded a second time. */
async function storedBlocks({ levels }: TensorReader, format: BlockFormat): Promise<QuantizedWeight | undefined> {
  if (levels === undefined || format.block !== GGML_BLOCK) return undefined;
  const stored = await levels();
  return stored.bits <= format.bits ? packLevels(stored, format.bits) : undefined;
}

/** Side of the squares in which a matrix is transposed: two of them fit a core's first cache. */
const TILE = 32;

/** @param matrix [rows, columns] @returns [columns, rows] */
export function transpose(matrix: Float32Array, rows: number, columns: number): Float32Array {
  const out = new Float32Array(matrix.length);
  for (let top = 0; top < rows; top += TILE) {
    for (let left = 0; left < columns; left += TILE) {
      const [bottom, right] = [Math.min(top + TILE, rows), Math.min(left + TILE, columns)];
      for (let row = top; row < bottom; row++) {
        for (let column = left; column < right; column++) out[column * rows + row] = matrix[row * columns + column]!;
      }
    }
  }
  return out;
}

/**
 * Multiplies `input` [..., columns] by the matrix, and adds the bias if there is one: [..., rows]. A table in floats
 * takes [n, columns] and no bias.
 */
export function multiply(graph: Graph, output: string, input: Value, matrix: StoredMatrix, bias?: Value): Value {
  if (matrix.kind === 'table') return graph.node('Gemm', output, [input, matrix.weight], { transB: 1 });
  // CUDA's kernels of MatMulNBits that multiply many rows take no bias (bundle/weight-formats.ts).
  const apart = bias !== undefined && (matrix.kind === 'floats' || graph.floats === 'float16');
  const name = apart ? `${output}.product` : output;
  const product =
    matrix.kind === 'floats'
      ? graph.node('MatMul', name, [input, matrix.weight])
      : multiplyBlocks(graph, name, input, matrix, apart ? undefined : bias);
  return apart ? graph.node('Add', output, [product, bias]) : product;
}

function multiplyBlocks(
  graph: Graph,
  output: string,
  input: Value,
  matrix: StoredMatrix & { readonly kind: 'blocks' },
  bias?: Value,
): Value {
  const inputs = [input, matrix.packed, matrix.scales, ...(bias ? [undefined, undefined, bias] : [])];
  return graph.node('MatMulNBits', output, inputs, {
    K: matrix.columns,
    N: matrix.rows,
    bits: matrix.format.bits,
    block_size: matrix.format.block,
    // Level 4 rounds activations to 8 bits per block. The other levels multiply in 32-bit floats, several times slower.
    accuracy_level: 4,
  });
}

/** Declares a linear layer and applies it to `input` [..., columns]: [..., rows]. */
export function linear(
  graph: Graph,
  input: Value,
  matrix: FloatMatrix & { readonly bias?: TensorReader },
  format: WeightFormat,
): Value {
  const bias = matrix.bias && graph.weight(`${matrix.name}.bias`, [matrix.rows], matrix.bias);
  if (format === 'w8a8') return linearW8A8(graph, matrix.name, input, matrix, bias);
  if (format === 'w8a8 by row') return linearByRow(graph, input, matrix, bias);
  if (format === 'fp16' || format === 'int8') return linearNarrow(graph, input, matrix, format, bias);
  return multiply(graph, matrix.name, input, storeMatrix(graph, matrix, format, 'multiply'), bias);
}

/** Activations get one scale per run, which suits rows that have passed a norm and so have the same size. */
function linearW8A8(graph: Graph, output: string, input: Value, matrix: FloatMatrix, bias?: Value): Value {
  const [levels, scales] = storeChannels(graph, matrix);
  graph.matrices.set(levels, matrix);
  return graph.node('DynamicQuantizeMatMul', output, [input, levels, scales, undefined, bias]);
}

/** Declares a matrix in 8 bits with a scale for each output: levels [columns, rows] and scales [rows]. */
function storeChannels(graph: Graph, { name, rows, columns, read }: FloatMatrix): [levels: Value, scales: Value] {
  const forms = [
    { name: `${name}.levels`, type: 'int8' as const, dims: [columns, rows] },
    { name: `${name}.scales`, type: 'float32' as const, dims: [rows] },
  ];
  const [levels, scales] = graph.weightGroup(forms, async () => {
    const quantized = quantizeChannels(await read(), rows);
    return [quantized.levels, quantized.scales];
  });
  return [levels!, scales!];
}

/**
 * Scales every row of `input` [batch, sequence, columns] to a largest value of 1 first, so that the one scale per run
 * suits all rows.
 */
function linearByRow(graph: Graph, input: Value, matrix: FloatMatrix, bias?: Value): Value {
  const { name } = matrix;
  const sizes = graph.node('Abs', `${name}.sizes`, [input]);
  // The axis is not -1: without rows the CPU's ReduceMax would then reduce nothing.
  const largest = graph.node('ReduceMax', `${name}.largest`, [sizes, graph.int64(`${name}.axis`, [2])]);
  // The lower bound keeps rows of zeros from being divided by zero.
  const scale = graph.node('Max', `${name}.row_scales`, [largest, graph.scalar(`${name}.tiny`, 1e-20)]);
  graph.stopped.add(scale); // it is divided by and multiplied by again
  const even = graph.node('Div', `${name}.even`, [input, scale]);
  const product = linearW8A8(graph, `${name}.product`, even, matrix);
  const scaled = graph.node('Mul', bias ? `${name}.scaled` : name, [product, scale]);
  return bias ? graph.node('Add', name, [scaled, bias]) : scaled;
}

/** `input` [batch, sequence, columns] times a matrix that is stored in fewer bits. */
function linearNarrow(graph: Graph, input: Value, matrix: FloatMatrix, format: NarrowFormat, bias?: Value): Value {
  const widen = storeNarrow(graph, matrix, format);
  const name = bias ? `${matrix.name}.product` : matrix.name;
  const product = graph.node('MatMul', name, [input, widen(input)]);
  return bias ? graph.node('Add', matrix.name, [product, bias]) : product;
}

/**
 * Declares a matrix in fewer bits.
 * @returns what adds the operators that widen it to floats [columns, rows] after a value [batch, sequence, width] has
 *   been computed. The dependence on that value, through its shape alone, is what saves memory: a matrix that depended
 *   on nothing would be widened when the session is opened and kept, and two of the same would be merged.
 */
function storeNarrow(graph: Graph, matrix: FloatMatrix, format: NarrowFormat): (after: Value) => Value {
  const { name, rows, columns } = matrix;
  const [values, scales] = format === 'fp16' ? [storeHalves(graph, matrix)] : storeChannels(graph, matrix);
  let made = 0;
  const widen = (after: Value): Value => {
    const stem = `${name}.widened.${made++}`;
    const length = graph.node('Shape', `${stem}.length`, [after], { start: 1, end: 2 });
    graph.stopped.add(length);
    const nothing = graph.node('Mul', `${stem}.nothing`, [length, graph.int64(`${stem}.zero`, [0])]);
    const sizes = graph.node('Add', `${stem}.sizes`, [nothing, graph.int64(`${stem}.dims`, [columns, rows])]);
    const waiting = graph.node('Reshape', `${stem}.narrow`, [values, sizes]);
    const wide = scales
      ? graph.node('DequantizeLinear', stem, [waiting, scales], { axis: 1 })
      : graph.node('Cast', stem, [waiting], { to: 'float32' });
    graph.widened.set(wide, widen);
    return wide;
  };
  return widen;
}

/** Declares a matrix in 16-bit floats, [columns, rows]. */
function storeHalves(graph: Graph, { name, rows, columns, read }: FloatMatrix): Value {
  const form = { name: `${name}.halves`, type: 'float16' as const, dims: [columns, rows] };
  const [values] = graph.weightGroup([form], async () => {
    const stored = new Uint16Array(rows * columns);
    narrow(transpose(await read(), rows, columns), stored);
    return [stored];
  });
  return values!;
}

/** Looks up the rows of a table that `ids` [batch, sequence] name: [batch, sequence, columns]. */
export function lookUp(graph: Graph, output: string, ids: Value, table: StoredMatrix): Value {
  if (table.kind !== 'blocks') return graph.node('Gather', output, [table.weight, ids], { axis: 0 });
  const { bits, block } = table.format;
  const blocks = graph.node('GatherBlockQuantized', `${output}.blocks`, [table.packed, ids, table.rowScales], {
    bits,
    block_size: block,
    gather_axis: 0,
    quantize_axis: 2,
  });
  return graph.node('Reshape', output, [blocks, graph.int64(`${output}.shape`, [0, 0, table.columns])]);
}
