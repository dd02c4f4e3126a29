/**
 * The rules of differentiation: for each operator, the gradients of its inputs from those of its outputs. A rule adds
 * ordinary operators of ONNX Runtime. Activations may be [rows, width] or [batch, sequence, width].
 */
import type { Attributes, AttributeValue, Graph, Operator, Value } from './graph.ts';
import { linear, transpose, type WeightFormat } from './linear.ts';
import type { NodeBuilder } from './node-builder.ts';

/** How the backward pass multiplies by a matrix that the forward pass has quantised. */
export type BackwardFormat = Extract<WeightFormat, 'fp32' | 'w8a8 by row'>;

interface RuleInput {
  readonly builder: NodeBuilder;
  /** The operator's inputs and outputs; `''` stands for one that is not given, or not wanted. */
  readonly inputs: readonly Value[];
  readonly outputs: readonly Value[];
  readonly attributes: Readonly<Record<string, AttributeValue>>;
  /** The gradient of each output; at least one is there. */
  readonly given: readonly (Value | undefined)[];
  /** Whether the gradient of each input is wanted. */
  readonly wanted: readonly boolean[];
  readonly backward: BackwardFormat;
}
/** Returns the gradients of the inputs, in order; undefined for one that is not wanted. */
type Rule = (input: RuleInput) => readonly (Value | undefined)[];

const SQRT_HALF = Math.SQRT1_2;
const DENSITY_AT_0 = 1 / Math.sqrt(2 * Math.PI);
/** Added to the scores of positions that a row does not see. */
const HIDDEN = -1e30;

/** Sizes of a value that is fed or stored, if all are known before a run. */
function sizesOf(graph: Graph, name: string): readonly number[] | undefined {
  const forms = [...graph.inputs, ...graph.constants, ...graph.weights.flatMap(({ parts }) => parts)];
  const dims = forms.find((form) => form.name === name)?.dims;
  return dims?.every((dim) => typeof dim === 'number') ? (dims as readonly number[]) : undefined;
}

/**
 * The gradient of an operand from one in the shape of the result. A parameter may have been repeated along leading
 * axes, over which its gradient is summed. Any other operand must have the shape of the result: a run fails if not.
 */
function forOperand(b: NodeBuilder, gradient: Value, operand: Value): Value {
  const sizes = sizesOf(b.graph, operand);
  return sizes ? b.sumLeading(gradient, sizes) : b.reshapeLike(gradient, operand);
}

/** The gradient of `x` for y = x · scale / sqrt(mean(x²) + epsilon), and that of the scale where it is wanted. */
function rmsNorm(
  b: NodeBuilder,
  x: Value,
  y: Value,
  scale: Value,
  g: Value,
  epsilon: number,
  wantsScale: boolean,
): [Value, Value | undefined] {
  const r = b.op('Reciprocal', [b.op('Sqrt', [b.add(b.meanLast(b.mul(x, x)), b.scalar(epsilon))])]);
  const along = b.meanLast(b.mul(g, y));
  const dx = b.mul(b.sub(b.mul(g, scale), b.mul(x, b.mul(along, r))), r);
  return [dx, wantsScale ? forOperand(b, b.mul(g, b.mul(x, r)), scale) : undefined];
}

/** The gradient goes back in the shape that the value had. */
const reshaped: Rule = ({ builder: b, inputs: [x], given: [g] }) => [b.reshapeLike(g!, x!)];

const matMul: Rule = ({ builder: b, inputs: [x, w], given: [g], wanted: [wantsX, wantsW] }) => {
  const weight = () => b.graph.widened.get(w!)?.(g!) ?? w;
  const dx = () => b.reshapeLike(b.product(g!, weight()!, { transB: 2 }), x!);
  const dw = () => {
    const sizes = sizesOf(b.graph, w!);
    if (sizes?.length !== 2) return b.reshapeLike(b.product(x!, g!, { transA: 3 }), w!);
    const [from, to] = sizes as [number, number];
    return b.op('Gemm', [b.reshape(x!, [-1, from]), b.reshape(g!, [-1, to])], { transA: 1 });
  };
  return [wantsX ? dx() : undefined, wantsW ? dw() : undefined];
};

/** x [rows, in] · W + bias, where W is [out, in] with `transB`, else [in, out]. */
const gemm: Rule = ({ builder: b, inputs: [x, w, bias], attributes, given: [g], wanted }) => {
  const { transA, transB } = attributes as Attributes<'Gemm'>;
  if (transA) throw new Error('a product of a transposed left side has no gradient');
  const dw = () => b.op('Gemm', transB ? [g, x] : [x, g], { transA: 1 });
  return [
    wanted[0] ? b.op('Gemm', [g, w], { transB: transB ? 0 : 1 }) : undefined,
    wanted[1] ? dw() : undefined,
    wanted[2] ? forOperand(b, g!, bias!) : undefined,
  ];
};

/**
 * A product with a quantised matrix: its gradient is that of the matrix itself, as if nothing had been rounded
 * (straight-through estimator).
 */
const quantised: Rule = ({ builder: b, inputs: [, levels], given: [g], backward }) => {
  const { name, rows, columns, read } = b.graph.matrices.get(levels!)!;
  const back = b.name(`${name}.back`);
  if (backward === 'fp32') {
    const weight = b.once(`matrix ${levels}`, () => b.graph.weight(back, [rows, columns], read));
    return [b.op('MatMul', [g, weight])];
  }
  const transposed = async () => transpose(await read(), rows, columns);
  return [linear(b.graph, g!, { name: back, rows: columns, columns: rows, read: transposed }, backward)];
};

/** Picks rows by one list of indices, along the last axis but one. An index may stand in the list twice. */
const gather: Rule = ({ builder: b, inputs: [x, indices], attributes, given: [g] }) => {
  const { axis = 0 } = attributes as Attributes<'Gather'>;
  const spread = b.op('Expand', [b.unsqueeze(indices!, 1), b.shape(g!)]);
  return [b.op('ScatterElements', [b.zerosLike(x!), spread, g], { axis, reduction: 'add' })];
};

const scatterND: Rule = ({ builder: b, inputs: [, indices, updates], given: [g], wanted }) => [
  wanted[0] ? b.op('ScatterND', [g, indices, b.zerosLike(updates!)]) : undefined,
  undefined,
  wanted[2] ? b.op('GatherND', [g, indices]) : undefined,
];

/** x · σ(αx): the derivative is σ + αy(1 - σ). With α = 1 it is SiLU. */
const quickGelu: Rule = ({ builder: b, inputs: [x], outputs: [y], attributes, given: [g] }) => {
  const { alpha = 1.702 } = attributes as Attributes<'QuickGelu'>;
  const sigmoid = b.op('Sigmoid', [alpha === 1 ? x : b.mul(x!, b.scalar(alpha))]);
  const rest = b.sub(y!, b.mul(sigmoid, y!));
  return [b.mul(g!, b.add(sigmoid, alpha === 1 ? rest : b.mul(rest, b.scalar(alpha))))];
};

/** x · Φ(x), with the exact error function: the derivative is Φ(x) + x φ(x). */
const gelu: Rule = ({ builder: b, inputs: [x], given: [g] }) => {
  const erf = b.op('Erf', [b.mul(x!, b.scalar(SQRT_HALF))]);
  const cumulative = b.mul(b.add(erf, b.scalar(1)), b.scalar(0.5));
  const density = b.mul(b.op('Exp', [b.mul(b.mul(x!, x!), b.scalar(-0.5))]), b.scalar(DENSITY_AT_0));
  return [b.mul(g!, b.add(cumulative, b.mul(x!, density)))];
};

const layerNorm: Rule = ({ builder: b, inputs: [x, scale, bias], attributes, given: [g], wanted }) => {
  const { epsilon = 1e-5 } = attributes as Attributes<'LayerNormalization'>;
  const centred = b.sub(x!, b.meanLast(x!));
  const variance = b.meanLast(b.mul(centred, centred));
  const r = b.op('Reciprocal', [b.op('Sqrt', [b.add(variance, b.scalar(epsilon))])]);
  const normed = b.mul(centred, r);
  const scaled = b.mul(g!, scale!);
  const across = b.mul(normed, b.meanLast(b.mul(scaled, normed)));
  return [
    wanted[0] ? b.mul(b.sub(b.sub(scaled, b.meanLast(scaled)), across), r) : undefined,
    wanted[1] ? forOperand(b, b.mul(g!, normed), scale!) : undefined,
    wanted[2] ? forOperand(b, g!, bias!) : undefined,
  ];
};

const simplifiedLayerNorm: Rule = ({
  builder: b,
  inputs: [x, scale],
  outputs: [y],
  attributes,
  given: [g],
  wanted,
}) => {
  const { epsilon = 1e-5 } = attributes as Attributes<'SimplifiedLayerNormalization'>;
  return rmsNorm(b, x!, y!, scale!, g!, epsilon, wanted[1]!);
};

/** Outputs: the normalised sum of both inputs, two that are never wanted, and the sum. */
const skipSimplifiedLayerNorm: Rule = ({ builder: b, inputs: [, , scale], outputs, attributes, given, wanted }) => {
  const { epsilon = 1e-5 } = attributes as Attributes<'SkipSimplifiedLayerNormalization'>;
  const [ofNormed, , , ofSum] = given;
  if (ofNormed === undefined) return [ofSum, ofSum];
  if (!outputs[3]) throw new Error(`${outputs[0]}: the gradient needs the sum as an output`);
  const [dx, dScale] = rmsNorm(b, outputs[3], outputs[0]!, scale!, ofNormed, epsilon, wanted[2]!);
  const total = ofSum === undefined ? dx : b.add(dx, ofSum);
  return [total, total, dScale];
};

/** A rotation of pairs: its transpose turns them back. */
const rotaryEmbedding: Rule = ({ builder: b, inputs: [, positions, cos, sin], attributes, given: [g] }) => {
  const back = b.once(`turned back ${sin}`, () => b.op('Neg', [sin]));
  return [b.op('RotaryEmbedding', [g, positions, cos, back], attributes as Attributes<'RotaryEmbedding'>)];
};

/**
 * Inputs: q [batch, sequence, heads × d], k and v [batch, sequence, kv heads × d], neither past nor rotation within,
 * all rows of full length; `attention_bias` may hide more than the causal mask does. The probabilities are computed
 * again: kept, they would be sequence² floats for each head of each layer.
 */
const groupQueryAttention: Rule = ({ builder: b, inputs, outputs, attributes, given: [g] }) => {
  const {
    num_heads: heads,
    kv_num_heads: kvHeads,
    do_rotary,
    scale: alpha,
  } = attributes as Attributes<'GroupQueryAttention'>;
  const [q, k, v, past, , , , , , , bias] = inputs;
  if (past || !k || !v || do_rotary || !alpha || !heads || !kvHeads) {
    throw new Error('attention has a gradient where it rotates apart, has a scale, and no past: see Transformer');
  }
  const group = heads / kvHeads;
  const width = b.op('Div', [b.shape(v, 2, 3), b.int64([kvHeads])]);
  const sequence = b.shape(v, 1, 2);
  const sizes = (...dims: (Value | number)[]) =>
    b.op(
      'Concat',
      dims.map((dim) => (typeof dim === 'number' ? b.int64([dim]) : dim)),
      { axis: 0 },
    );
  // Heads that share keys and values lie one below the other: their rows are rows of one product.
  const stacked = sizes(-1, kvHeads, group, sequence, width);
  const rowsOf = (x: Value) =>
    b.reshape(b.transpose(b.reshape(x, [0, 0, kvHeads, group, -1]), [0, 2, 3, 1, 4]), sizes(0, kvHeads, -1, width));
  const columnsOf = (x: Value) => b.transpose(b.reshape(x, [0, 0, kvHeads, -1]), [0, 2, 1, 3]);
  const [queries, keys, values, dMixed] = [rowsOf(q!), columnsOf(k), columnsOf(v), rowsOf(g!)];
  const scores = b.product(queries, keys, { transB: 4, alpha });
  const square = sizes(-1, kvHeads, group, sequence, sequence);
  const masked = b.add(b.reshape(scores, square), causalMask(b, sequence, bias));
  const p = b.reshapeLike(b.op('Softmax', [masked], { axis: -1 }), scores);
  const along = b.sumLast(b.mul(dMixed, rowsOf(outputs[0]!)));
  const dScores = b.mul(p, b.sub(b.product(dMixed, values, { transB: 4 }), along));
  const dQueries = b.product(dScores, keys, { alpha });
  const dKeys = b.product(dScores, queries, { transA: 4, alpha });
  const dValues = b.product(p, dMixed, { transA: 4 });
  const rowsBack = (x: Value) => b.reshape(b.transpose(b.reshape(x, stacked), [0, 3, 1, 2, 4]), b.shape(q!));
  const columnsBack = (x: Value, like: Value) => b.reshapeLike(b.transpose(x, [0, 2, 1, 3]), like);
  return [rowsBack(dQueries), columnsBack(dKeys, k), columnsBack(dValues, v)];
};

/** [sequence, sequence]: 0 where a row sees a column, else very low; one for all layers. */
function causalMask(b: NodeBuilder, sequence: Value, bias: Value | undefined): Value {
  return b.once(`causal mask ${bias}`, () => {
    const positions = b.op('Range', [b.int64(0), b.op('Squeeze', [sequence]), b.int64(1)]);
    const hides = b.op('Less', [b.unsqueeze(positions, 1), positions]);
    const mask = b.op('Where', [hides, b.scalar(HIDDEN), b.scalar(0)]);
    if (!bias) return mask;
    const both = b.add(mask, b.op('Squeeze', [bias, b.int64([0, 1])]));
    return b.op('Max', [both, b.scalar(HIDDEN)]);
  });
}

/** Splits along an axis. A part whose gradient nobody gives has one of zeros. */
const split: Rule = ({ builder: b, outputs, attributes, given }) => {
  const { axis = 0 } = attributes as Attributes<'Split'>;
  return [
    b.op(
      'Concat',
      given.map((g, i) => g ?? b.zerosLike(outputs[i]!)),
      { axis },
    ),
  ];
};

export const RULES: Readonly<Partial<Record<Operator, Rule>>> = {
  Add: ({ builder: b, inputs, given: [g], wanted }) =>
    inputs.map((operand, i) => (wanted[i] ? forOperand(b, g!, operand) : undefined)),
  Sub: ({ builder: b, inputs: [x, y], given: [g], wanted }) => [
    wanted[0] ? forOperand(b, g!, x!) : undefined,
    wanted[1] ? forOperand(b, b.op('Neg', [g]), y!) : undefined,
  ],
  Mul: ({ builder: b, inputs: [x, y], given: [g], wanted }) => [
    wanted[0] ? forOperand(b, b.mul(g!, y!), x!) : undefined,
    wanted[1] ? forOperand(b, b.mul(g!, x!), y!) : undefined,
  ],
  Div: ({ builder: b, inputs: [x, y], outputs: [quotient], given: [g], wanted }) => {
    const part = b.div(g!, y!);
    return [
      wanted[0] ? forOperand(b, part, x!) : undefined,
      wanted[1] ? forOperand(b, b.op('Neg', [b.mul(part, quotient!)]), y!) : undefined,
    ];
  },
  DynamicQuantizeMatMul: quantised,
  Gather: gather,
  Gelu: gelu,
  Gemm: gemm,
  GroupQueryAttention: groupQueryAttention,
  Identity: ({ given: [g] }) => [g],
  LayerNormalization: layerNorm,
  MatMul: matMul,
  MatMulNBits: quantised,
  QuickGelu: quickGelu,
  Reshape: reshaped,
  RotaryEmbedding: rotaryEmbedding,
  ScatterND: scatterND,
  SimplifiedLayerNormalization: simplifiedLayerNorm,
  SkipSimplifiedLayerNormalization: skipSimplifiedLayerNorm,
  Split: split,
  Squeeze: reshaped,
  Transpose: ({ builder: b, attributes, given: [g] }) => {
    const { perm = [] } = attributes as Attributes<'Transpose'>;
    return [
      b.transpose(
        g!,
        perm.map((_, axis) => perm.indexOf(axis)),
      ),
    ];
  },
  Unsqueeze: reshaped,
};
