/** Gradients of every operator that has a rule are those of finite differences. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Tensor } from '../../../services/lib/engine/ort.ts';
import { differentiate } from '../../../services/lib/model/graph/gradient.ts';
import { type BackwardFormat, RULES } from '../../../services/lib/model/graph/gradient-rules.ts';
import { Graph, type Value } from '../../../services/lib/model/graph/graph.ts';
import { linear, type WeightFormat } from '../../../services/lib/model/graph/linear.ts';
import { NodeBuilder } from '../../../services/lib/model/graph/node-builder.ts';
import { wordsAt } from '../../../services/lib/numeric/random.ts';
import { loadGraph, temporaryFolder } from '../../support/models.ts';
import { relativeError } from '../../support/training-goldens.ts';

const parent = await temporaryFolder();
let folders = 0;
const open = (graph: Graph) => loadGraph(graph, parent, `graph-${folders++}`);

type Arrays = Readonly<Record<string, Float32Array>>;
const count = (dims: readonly number[]) => dims.reduce((product, dim) => product * dim, 1);
/** Numbers in [-1, 1) that depend on seed and stream alone. */
const numbers = (seed: number, stream: number, dims: readonly number[]) =>
  Float32Array.from({ length: count(dims) }, (_, i) => wordsAt(seed, 1000 * stream + i)[0] / 2 ** 31 - 1);
const float32 = (dims: readonly number[], data: Float32Array): Tensor => ({ type: 'float32', dims, data });
function dot(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
}

interface Case {
  /** Shapes of the inputs by name. The gradients of all of them are wanted. */
  readonly inputs: Readonly<Record<string, readonly number[]>>;
  /** Those whose sizes the graph knows before a run, as it does those of weights; the others have named dimensions. */
  readonly parameters?: readonly string[];
  readonly result: readonly number[];
  /** Added to all inputs: keeps divisors away from 0. */
  readonly offset?: number;
  readonly build: (b: NodeBuilder, inputs: Readonly<Record<string, Value>>) => Value;
}

/** A graph with outputs `y` and `gradient.NAME`, where `seed` is the gradient at y. */
function graphOf({ inputs, parameters = [], result, build }: Case): Graph {
  const graph = new Graph();
  const dimsOf = (name: string, dims: readonly number[]) =>
    parameters.includes(name) ? dims : dims.map((_, axis) => `${name}.${axis}`);
  const values = Object.fromEntries(
    Object.entries(inputs).map(([name, dims]) => [name, graph.input(name, 'float32', dimsOf(name, dims))]),
  );
  const seed = graph.input('seed', 'float32', result);
  const y = build(new NodeBuilder(graph, 'case'), values);
  graph.output(graph.node('Identity', 'result', [y]), 'float32', result);
  const gradients = differentiate(graph, { seeds: new Map([[y, seed]]), wrt: Object.values(values) });
  for (const [name, dims] of Object.entries(inputs)) {
    const gradient = graph.node('Identity', `gradient.${name}`, [gradients.get(values[name]!)]);
    graph.output(gradient, 'float32', dims);
  }
  return graph;
}

/** Compares the derivative along a random direction with the gradient, at random inputs. */
async function check(example: Case): Promise<void> {
  const { inputs, result, offset = 0 } = example;
  const session = await open(graphOf(example));
  const draw = (seed: number, stream: number, plus = 0): Arrays =>
    Object.fromEntries(
      Object.entries(inputs).map(([name, dims], i) => [name, numbers(seed, stream + i, dims).map((x) => x + plus)]),
    );
  const tensors = (arrays: Arrays) =>
    Object.fromEntries(Object.entries(inputs).map(([name, dims]) => [name, float32(dims, arrays[name]!)]));
  const step = 2 ** -7;
  try {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 0, max: 2 ** 31 }), async (draws) => {
        const seed = numbers(draws, 0, result);
        const at = draw(draws, 1, offset);
        const along = draw(draws, 20);
        const run = (distance: number) => {
          const moved = Object.entries(at).map(([name, x]) => [name, x.map((v, i) => v + distance * along[name]![i]!)]);
          return session.run({ ...tensors(Object.fromEntries(moved)), seed: float32(result, seed) });
        };
        const [before, here, after] = [await run(-step), await run(0), await run(step)];
        const loss = (out: typeof here) => dot(out['result']!.data as Float32Array, seed);
        const measured = (loss(after) - loss(before)) / (2 * step);
        const gradients = Object.keys(inputs).map((name) => here[`gradient.${name}`]!.data as Float32Array);
        const computed = Object.keys(inputs).reduce((sum, name, i) => sum + dot(gradients[i]!, along[name]!), 0);
        const size = Math.hypot(...gradients.flatMap((gradient) => [...gradient]));
        expect(Math.abs(measured - computed)).toBeLessThan(0.01 * size + 1e-3);
      }),
      { numRuns: 12, endOnFailure: true },
    );
  } finally {
    session.dispose();
  }
}

/** A case for activations of two axes, and the same one for three. */
const bothRanks = (
  name: string,
  width: number,
  rest: Pick<Case, 'parameters' | 'offset'> & {
    readonly inputs: (activations: readonly number[]) => Case['inputs'];
    readonly resultWidth?: number;
    readonly build: Case['build'];
  },
): [string, Case][] =>
  [[6], [2, 3]].map((rows) => [
    `${name} of ${rows.length + 1} axes`,
    { ...rest, inputs: rest.inputs([...rows, width]), result: [...rows, rest.resultWidth ?? width] },
  ]);

const GROUPED = { num_heads: 4, kv_num_heads: 2, do_rotary: 0, scale: 1 / Math.sqrt(8) } as const;
const attention = (batch: number, biased: boolean): Case => {
  const sequence = 5;
  const keys = [batch, sequence, 2 * 8];
  return {
    inputs: { q: [batch, sequence, 4 * 8], k: keys, v: keys },
    result: [batch, sequence, 4 * 8],
    build: (b, { q, k, v }) => {
      const last = b.cast(b.int64(new Array<number>(batch).fill(sequence - 1)), 'int32');
      const total = b.cast(b.int64(sequence), 'int32');
      // The last row does not see columns 1 and 2.
      const hidden = Float32Array.from({ length: sequence ** 2 }, (_, i) =>
        i === 21 || i === 22 ? -1e30 : 0.1 * (i % 3),
      );
      const bias = biased ? b.graph.weight('bias', [1, 1, sequence, sequence], async () => hidden) : undefined;
      const none = undefined;
      const inputs = [q, k, v, none, none, last, total, none, none, none, bias];
      return b.graph.nodeWith('GroupQueryAttention', ['mixed', '', ''], inputs, GROUPED)[0]!;
    },
  };
};

const CASES: readonly (readonly [operators: string, name: string, example: Case])[] = [
  ...bothRanks('a sum', 4, { inputs: (x) => ({ x, y: x }), build: (b, { x, y }) => b.add(x!, y!) }).map(
    ([name, example]) => ['Add', name, example] as const,
  ),
  ...bothRanks('a sum with a bias', 4, {
    inputs: (x) => ({ x, bias: [4] }),
    parameters: ['bias'],
    build: (b, { x, bias }) => b.add(x!, bias!),
  }).map(([name, example]) => ['Add', name, example] as const),
  ...bothRanks('a difference from a bias', 4, {
    inputs: (x) => ({ x, bias: [4] }),
    parameters: ['bias'],
    build: (b, { x, bias }) => b.sub(x!, bias!),
  }).map(([name, example]) => ['Sub', name, example] as const),
  ...bothRanks('a product', 4, { inputs: (x) => ({ x, y: x }), build: (b, { x, y }) => b.mul(x!, y!) }).map(
    ([name, example]) => ['Mul', name, example] as const,
  ),
  ['Mul', 'a square', { inputs: { x: [5] }, result: [5], build: (b, { x }) => b.mul(x!, x!) }],
  ...bothRanks('a quotient', 4, {
    inputs: (x) => ({ x, y: x }),
    offset: 3,
    build: (b, { x, y }) => b.div(x!, y!),
  }).map(([name, example]) => ['Div', name, example] as const),
  ...bothRanks('a product with a matrix', 4, {
    inputs: (x) => ({ x, w: [4, 5] }),
    parameters: ['w'],
    resultWidth: 5,
    build: (b, { x, w }) => b.op('MatMul', [x, w]),
  }).map(([name, example]) => ['MatMul', name, example] as const),
  [
    'MatMul',
    'a product of batches',
    { inputs: { x: [2, 3, 4], w: [2, 4, 5] }, result: [2, 3, 5], build: (b, { x, w }) => b.op('MatMul', [x, w]) },
  ],
  ...[0, 1].map(
    (transB) =>
      [
        'Gemm',
        `a linear layer with transB ${transB}`,
        {
          inputs: { x: [6, 4], w: transB ? [5, 4] : [4, 5], bias: [5] },
          parameters: ['w', 'bias'],
          result: [6, 5],
          build: (b, { x, w, bias }) => b.op('Gemm', [x, w, bias], { transB }),
        } satisfies Case,
      ] as const,
  ),
  [
    'Gather',
    'rows that are picked, one of them twice,',
    {
      inputs: { x: [5, 4] },
      result: [4, 4],
      build: (b, { x }) => b.op('Gather', [x, b.int64([4, 1, 1, 0])], { axis: 0 }),
    },
  ],
  [
    'Gather',
    'rows that are picked from every sequence, one of them twice,',
    {
      inputs: { x: [2, 5, 4] },
      result: [2, 3, 4],
      build: (b, { x }) => b.op('Gather', [x, b.int64([3, 3, 0])], { axis: 1 }),
    },
  ],
  [
    'ScatterND',
    'rows that are overwritten',
    {
      inputs: { x: [5, 4], rows: [2, 4] },
      result: [5, 4],
      build: (b, { x, rows }) => b.op('ScatterND', [x, b.unsqueeze(b.int64([3, 0]), 1), rows]),
    },
  ],
  ...[1, 1.702].flatMap((alpha) =>
    bothRanks(`x · σ(${alpha} x)`, 4, {
      inputs: (x) => ({ x }),
      build: (b, { x }) => b.op('QuickGelu', [x], { alpha }),
    }).map(([name, example]) => ['QuickGelu', name, example] as const),
  ),
  ...bothRanks('exact GELU', 4, { inputs: (x) => ({ x }), build: (b, { x }) => b.op('Gelu', [x]) }).map(
    ([name, example]) => ['Gelu', name, example] as const,
  ),
  ...bothRanks('a norm of layers', 7, {
    inputs: (x) => ({ x, scale: [7], bias: [7] }),
    parameters: ['scale', 'bias'],
    build: (b, { x, scale, bias }) => b.op('LayerNormalization', [x, scale, bias], { axis: -1, epsilon: 1e-2 }),
  }).map(([name, example]) => ['LayerNormalization', name, example] as const),
  ...bothRanks('a norm by the root mean square', 7, {
    inputs: (x) => ({ x, scale: [7] }),
    parameters: ['scale'],
    build: (b, { x, scale }) => b.op('SimplifiedLayerNormalization', [x, scale], { axis: -1, epsilon: 1e-2 }),
  }).map(([name, example]) => ['SimplifiedLayerNormalization', name, example] as const),
  ...bothRanks('a norm of a sum, and the sum itself', 7, {
    inputs: (x) => ({ x, y: x, scale: [7] }),
    parameters: ['scale'],
    build: (b, { x, y, scale }) => {
      const names = ['normed', '', '', 'sum'];
      const [normed, , , sum] = b.graph.nodeWith('SkipSimplifiedLayerNormalization', names, [x, y, scale], {
        epsilon: 1e-2,
      });
      return b.add(normed!, b.mul(sum!, sum!));
    },
  }).map(([name, example]) => ['SkipSimplifiedLayerNormalization', name, example] as const),
  ['Reshape', 'a reshape', { inputs: { x: [4, 3] }, result: [2, 6], build: (b, { x }) => b.reshape(x!, [2, 6]) }],
  ['Unsqueeze', 'a new axis', { inputs: { x: [4] }, result: [4, 1], build: (b, { x }) => b.unsqueeze(x!, 1) }],
  [
    'Squeeze',
    'an axis that goes',
    { inputs: { x: [4, 1] }, result: [4], build: (b, { x }) => b.op('Squeeze', [x, b.int64([1])]) },
  ],
  ['Identity', 'the same value', { inputs: { x: [4] }, result: [4], build: (b, { x }) => b.op('Identity', [x]) }],
  [
    'Transpose',
    'exchanged axes',
    { inputs: { x: [2, 3, 4] }, result: [4, 2, 3], build: (b, { x }) => b.transpose(x!, [2, 0, 1]) },
  ],
  [
    'Split',
    'parts, of which one is not used,',
    {
      inputs: { x: [3, 7] },
      result: [3, 2],
      build: (b, { x }) => {
        const [first, , last] = b.ops('Split', 3, [x, b.int64([2, 3, 2])], { axis: -1 });
        return b.mul(first!, last!);
      },
    },
  ],
  [
    'RotaryEmbedding',
    'rotated heads',
    {
      inputs: { x: [1, 3, 2 * 4] },
      result: [1, 3, 2 * 4],
      build: (b, { x }) => {
        const angles = [0, 0, 0.3, 0.1, 0.6, 0.2, 0.9, 0.3];
        const cos = b.graph.weight('cos', [4, 2], async () => Float32Array.from(angles, Math.cos));
        const sin = b.graph.weight('sin', [4, 2], async () => Float32Array.from(angles, Math.sin));
        const positions = b.unsqueeze(b.int64([1, 3, 2]), 0);
        return b.op('RotaryEmbedding', [x, positions, cos, sin], { interleaved: 0, num_heads: 2 });
      },
    },
  ],
  ['GroupQueryAttention', 'attention', attention(1, false)],
  ['GroupQueryAttention', 'attention of a batch', attention(2, false)],
  ['GroupQueryAttention', 'attention that a bias hides columns from', attention(1, true)],
];

describe('gradients by rule', () => {
  test.each(CASES)('%s: the gradient of %s is that of finite differences', async (_, __, example) => {
    await check(example);
  });

  test('every operator with a rule is among these tests', () => {
    const tested = new Set<string>(CASES.map(([operator]) => operator));
    for (const quantised of ['DynamicQuantizeMatMul', 'MatMulNBits']) tested.add(quantised); // see below
    expect(Object.keys(RULES).filter((operator) => !tested.has(operator))).toEqual([]);
  });

  test.each<[WeightFormat, BackwardFormat, number]>([
    ['w8a8', 'fp32', 1e-6],
    ['w8a8 by row', 'fp32', 1e-6],
    ['w8a8 by row', 'w8a8 by row', 0.02],
    [{ bits: 8, block: 32 }, 'fp32', 1e-6],
    [{ bits: 4, block: 32 }, 'w8a8 by row', 0.02],
  ])('a matrix stored as %j has the gradient of its floats, multiplied in %s', async (format, backward, tolerance) => {
    const [rows, columns, n] = [24, 64, 5];
    const weight = numbers(1, 0, [rows, columns]);
    const graph = new Graph();
    const x = graph.input('x', 'float32', [1, 'n', columns]);
    const seed = graph.input('seed', 'float32', [1, 'n', rows]);
    const y = linear(graph, x, { name: 'y', rows, columns, read: async () => weight }, format);
    const gradients = differentiate(graph, { seeds: new Map([[y, seed]]), wrt: [x], backward });
    graph.output(graph.node('Identity', 'gradient', [gradients.get(x)]), 'float32', [1, 'n', columns]);
    const session = await open(graph);
    const given = numbers(2, 0, [n, rows]);
    const out = await session.run({
      x: float32([1, n, columns], numbers(3, 0, [n, columns])),
      seed: float32([1, n, rows], given),
    });
    const wanted = Float32Array.from({ length: n * columns }, (_, at) => {
      const [row, column] = [Math.floor(at / columns), at % columns];
      let sum = 0;
      for (let i = 0; i < rows; i++) sum += given[row * rows + i]! * weight[i * columns + column]!;
      return sum;
    });
    expect(relativeError(out['gradient']!.data as Float32Array, wanted)).toBeLessThan(tolerance);
    session.dispose();
  });
});

describe('the walk', () => {
  /** y = x³ in two products, and what the walk added. */
  const cube = () => {
    const graph = new Graph();
    const x = graph.input('x', 'float32', ['n']);
    const seed = graph.input('seed', 'float32', ['n']);
    const square = graph.node('Mul', 'square', [x, x]);
    const y = graph.node('Mul', 'cube', [square, x]);
    return { graph, x, seed, y };
  };

  test('activations that are computed again give the same gradient as kept ones', async () => {
    const results: (Tensor | undefined)[] = [];
    for (const endsSegment of [undefined, ({ outputs }: { outputs: readonly string[] }) => outputs[0] === 'square']) {
      const { graph, x, seed, y } = cube();
      const again = graph.node('Mul', 'again', [y, y]);
      const gradients = differentiate(graph, { seeds: new Map([[again, seed]]), wrt: [x], endsSegment });
      graph.output(gradients.get(x)!, 'float32', ['n']);
      const session = await open(graph);
      const feed = { x: float32([3], Float32Array.of(-1, 0.5, 2)), seed: float32([3], Float32Array.of(1, 1, 1)) };
      results.push(Object.values(await session.run(feed))[0]);
      session.dispose();
    }
    expect(results[0]!.data).toEqual(Float32Array.of(-6, 6 / 32, 192));
    expect(results[1]).toEqual(results[0]);
  });

  test('nothing is added that no wanted gradient needs', () => {
    const { graph, x, seed, y } = cube();
    const before = graph.nodes.length;
    const parameter = graph.input('parameter', 'float32', ['n']);
    graph.node('Mul', 'unrelated', [y, parameter]);
    const gradients = differentiate(graph, { seeds: new Map([[y, seed]]), wrt: [x, parameter] });
    expect(gradients.has(parameter)).toBe(false);
    const used = new Set([...graph.nodes.flatMap(({ inputs }) => inputs), gradients.get(x)]);
    const unused = graph.nodes.slice(before + 1).filter(({ outputs }) => !outputs.some((name) => used.has(name)));
    expect(unused).toEqual([]);
  });

  test('an operator without a rule is named', () => {
    const { graph, x, seed, y } = cube();
    const largest = graph.node('Max', 'largest', [y, x]);
    expect(() => differentiate(graph, { seeds: new Map([[largest, seed]]), wrt: [x] })).toThrow(
      'Max has no gradient (largest)',
    );
  });
});
