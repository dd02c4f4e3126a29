/**
 * A computation graph under construction: typed operators, small constants, and weights that are declared now and read
 * when the file is written. Only what our graphs use can be expressed.
 */
import { narrow } from '../../numeric/half.ts';
import type { TensorReader } from '../checkpoint/checkpoint.ts';

export type DataType = 'float32' | 'float16' | 'uint8' | 'int8' | 'int32' | 'int64' | 'bool';
/** Types of elements that are stored in a file. The others only pass between operators. */
export type StoredType = Exclude<DataType, 'bool' | 'int32'>;
export type StoredArray = Float32Array | Uint16Array | Uint8Array | Int8Array | BigInt64Array;

/** A size, or the name of a size that is known only when the graph runs. */
export type Dim = number | string;

declare const brand: unique symbol;
/** The name of a value that is computed, fed or stored in the graph. */
export type Value = string & { readonly [brand]: true };

export type AttributeKind = 'int' | 'ints' | 'float' | 'text' | 'type';
const operator = <const A extends Record<string, AttributeKind>>(domain: '' | 'com.microsoft', attributes: A) => ({
  domain,
  attributes,
});

/** The operators that our graphs use, with their domains and attributes. */
export const OPERATORS = {
  Abs: operator('', {}),
  Add: operator('', {}),
  Cast: operator('', { to: 'type' }),
  Concat: operator('', { axis: 'int' }),
  ConstantOfShape: operator('', {}),
  DequantizeLinear: operator('', { axis: 'int' }),
  Div: operator('', {}),
  DynamicQuantizeMatMul: operator('com.microsoft', {}),
  Equal: operator('', {}),
  Erf: operator('', {}),
  Exp: operator('', {}),
  Expand: operator('', {}),
  FusedMatMul: operator('com.microsoft', { alpha: 'float', transA: 'int', transB: 'int' }),
  Gather: operator('', { axis: 'int' }),
  GatherElements: operator('', { axis: 'int' }),
  GatherND: operator('', { batch_dims: 'int' }),
  Gelu: operator('com.microsoft', {}),
  GatherBlockQuantized: operator('com.microsoft', {
    bits: 'int',
    block_size: 'int',
    gather_axis: 'int',
    quantize_axis: 'int',
  }),
  Gemm: operator('', { transA: 'int', transB: 'int' }),
  GroupQueryAttention: operator('com.microsoft', {
    num_heads: 'int',
    kv_num_heads: 'int',
    do_rotary: 'int',
    rotary_interleaved: 'int',
    causal: 'int',
    scale: 'float',
    k_quant_type: 'text',
    v_quant_type: 'text',
    kv_cache_bit_width: 'int',
  }),
  Identity: operator('', {}),
  LayerNormalization: operator('', { axis: 'int', epsilon: 'float' }),
  Less: operator('', {}),
  Log: operator('', {}),
  LogSoftmax: operator('', { axis: 'int' }),
  LpNormalization: operator('', { axis: 'int', p: 'int' }),
  MatMul: operator('', {}),
  MatMulInteger: operator('', {}),
  MatMulNBits: operator('com.microsoft', {
    K: 'int',
    N: 'int',
    bits: 'int',
    block_size: 'int',
    accuracy_level: 'int',
  }),
  Max: operator('', {}),
  Mul: operator('', {}),
  Neg: operator('', {}),
  QuickGelu: operator('com.microsoft', { alpha: 'float' }),
  Range: operator('', {}),
  Reciprocal: operator('', {}),
  ReduceMean: operator('', { keepdims: 'int' }),
  ReduceSum: operator('', { keepdims: 'int' }),
  ReduceMax: operator('', {}),
  ReduceMin: operator('', {}),
  Reshape: operator('', { allowzero: 'int' }),
  RotaryEmbedding: operator('com.microsoft', { interleaved: 'int', num_heads: 'int' }),
  ScatterElements: operator('', { axis: 'int', reduction: 'text' }),
  ScatterND: operator('', {}),
  Shape: operator('', { start: 'int', end: 'int' }),
  Sigmoid: operator('', {}),
  SimplifiedLayerNormalization: operator('', { axis: 'int', epsilon: 'float' }),
  SkipLayerNormalization: operator('com.microsoft', { epsilon: 'float' }),
  SkipSimplifiedLayerNormalization: operator('com.microsoft', { epsilon: 'float' }),
  Slice: operator('', {}),
  Softmax: operator('', { axis: 'int' }),
  Split: operator('', { axis: 'int' }),
  Sqrt: operator('', {}),
  Squeeze: operator('', {}),
  Sub: operator('', {}),
  Transpose: operator('', { perm: 'ints' }),
  Unsqueeze: operator('', {}),
  Where: operator('', {}),
} as const;
export type Operator = keyof typeof OPERATORS;

type ValueOf<K extends AttributeKind> = K extends 'type'
  ? DataType
  : K extends 'ints'
    ? readonly number[]
    : K extends 'text'
      ? string
      : number;
/** The value of an attribute: of kind type, text, ints, int or float. */
export type AttributeValue = DataType | string | readonly number[] | number;
export type Attributes<O extends Operator> = {
  readonly [A in keyof (typeof OPERATORS)[O]['attributes']]?: ValueOf<
    (typeof OPERATORS)[O]['attributes'][A] & AttributeKind
  >;
};

export interface Node {
  readonly operator: Operator;
  /** An empty name stands for an optional input that is not given, or an output that is not wanted. */
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes: Readonly<Record<string, AttributeValue>>;
}

/** A tensor's name, type and shape. */
export interface TensorForm<T extends DataType = DataType, D extends Dim = Dim> {
  readonly name: string;
  readonly type: T;
  readonly dims: readonly D[];
}

export interface Constant extends TensorForm<StoredType, number> {
  readonly data: StoredArray;
}

/** Weights that are read together, such as the levels and the scales of one quantised matrix. */
interface WeightGroup {
  readonly parts: readonly TensorForm<StoredType, number>[];
  /** Reads or computes the data of every part, in order. */
  readonly produce: () => Promise<readonly StoredArray[]>;
}

/** The matrix that a quantised weight was made from, as the checkpoint has it. */
export interface FloatMatrix {
  readonly name: string;
  /** Output width. */
  readonly rows: number;
  /** Input width. */
  readonly columns: number;
  /** Reads [rows, columns]. */
  readonly read: TensorReader;
}

export class Graph {
  /** The type in which the graph computes: that of its float weights, scalars and activations. */
  readonly floats: 'float32' | 'float16';
  readonly nodes: Node[] = [];
  readonly inputs: TensorForm[] = [];
  readonly outputs: TensorForm[] = [];
  readonly constants: Constant[] = [];
  readonly weights: WeightGroup[] = [];
  /** The matrices that quantised weights were made from, by the name of the weight's levels: gradients need them. */
  readonly matrices = new Map<string, FloatMatrix>();
  /**
   * Matrices that were widened from fewer bits. The function widens one again, after a value [batch, sequence, width]
   * has been computed: gradients do so, rather than keep it.
   */
  readonly widened = new Map<string, (after: Value) => Value>();
  /** Values on which, computed as they are, the result does not depend: no gradient flows through them. */
  readonly stopped = new Set<string>();
  readonly #names = new Set<string>();

  constructor(floats: 'float32' | 'float16' = 'float32') {
    this.floats = floats;
  }

  input(name: string, type: DataType, dims: readonly Dim[]): Value {
    this.inputs.push({ name, type, dims });
    return this.#define(name);
  }

  /** Makes a computed value an output under its own name. */
  output(value: Value, type: DataType, dims: readonly Dim[]): void {
    this.outputs.push({ name: value, type, dims });
  }

  /** Adds an operator with one output of the given name. */
  node<O extends Operator>(
    operator: O,
    output: string,
    inputs: readonly (Value | undefined)[],
    attributes?: Attributes<O>,
  ): Value {
    return this.nodeWith(operator, [output], inputs, attributes)[0]!;
  }

  /** Adds an operator with several outputs. An output named `''` is left out. */
  nodeWith<O extends Operator>(
    operator: O,
    outputs: readonly string[],
    inputs: readonly (Value | undefined)[],
    attributes: Attributes<O> = {},
  ): Value[] {
    this.nodes.push({
      operator,
      inputs: inputs.map((input) => input ?? ''),
      outputs,
      attributes: attributes as Node['attributes'],
    });
    return outputs.map((output) => (output === '' ? ('' as Value) : this.#define(output)));
  }

  /** Adds a constant of whole numbers, such as a shape, axes or indices. A plain number becomes a scalar. */
  int64(name: string, values: number | readonly number[]): Value {
    const dims = typeof values === 'number' ? [] : [values.length];
    const data = BigInt64Array.from([values].flat(), BigInt);
    this.constants.push({ name, type: 'int64', dims, data });
    return this.#define(name);
  }

  /** Adds a constant scalar. */
  scalar(name: string, value: number): Value {
    this.constants.push({ name, type: this.floats, dims: [], data: this.stored(Float32Array.of(value)) });
    return this.#define(name);
  }

  /** Adds a constant vector of floats. */
  floats1d(name: string, values: Float32Array): Value {
    this.constants.push({ name, type: this.floats, dims: [values.length], data: this.stored(values) });
    return this.#define(name);
  }

  /** Declares a weight of floats, which `produce` reads when the file is written. */
  weight(name: string, dims: readonly number[], produce: () => Promise<Float32Array>): Value {
    return this.weightGroup([{ name, type: this.floats, dims }], async () => [this.stored(await produce())])[0]!;
  }

  /** Numbers in the form in which the graph's float weights are stored. */
  stored(values: Float32Array): Float32Array | Uint16Array {
    if (this.floats === 'float32') return values;
    const halves = new Uint16Array(values.length);
    narrow(values, halves);
    return halves;
  }

  weightGroup(parts: WeightGroup['parts'], produce: WeightGroup['produce']): Value[] {
    this.weights.push({ parts, produce });
    return parts.map(({ name }) => this.#define(name));
  }

  #define(name: string): Value {
    if (this.#names.has(name)) throw new Error(`the graph has two values named ${name}`);
    this.#names.add(name);
    return name as Value;
  }
}
