/**
 * Short forms that add operators to a graph under names of their own, for graphs that are derived from other graphs:
 * gradients and losses have many values, and none of them is fed or fetched by name.
 */
import type { Attributes, DataType, Graph, Operator, Value } from './graph.ts';

export class NodeBuilder {
  readonly graph: Graph;
  readonly #prefix: string;
  readonly #fuses: boolean;
  readonly #once = new Map<string, Value>();
  #count = 0;

  /**
   * @param prefix begins all names; two builders of one graph need two prefixes.
   * @param fuses whether transposes and factors may be part of products: WebGPU has no operator for it (ONNX Runtime
   *   1.30)
   */
  constructor(graph: Graph, prefix: string, fuses = true) {
    this.graph = graph;
    this.#prefix = prefix;
    this.#fuses = fuses;
  }

  /** A name that no other value has. */
  name(stem: string): string {
    return `${this.#prefix}.${this.#count++}.${stem}`;
  }

  /** Adds an operator with one output. */
  op<O extends Operator>(operator: O, inputs: readonly (Value | undefined)[], attributes?: Attributes<O>): Value {
    return this.graph.node(operator, this.name(operator), inputs, attributes);
  }

  /** Adds an operator with `count` outputs. */
  ops<O extends Operator>(
    operator: O,
    count: number,
    inputs: readonly (Value | undefined)[],
    attributes?: Attributes<O>,
  ): Value[] {
    const names = Array.from({ length: count }, (_, i) => this.name(`${operator}.${i}`));
    return this.graph.nodeWith(operator, names, inputs, attributes);
  }

  /** The value that `make` adds the first time; the same one for the same key later on. */
  once(key: string, make: () => Value): Value {
    const value = this.#once.get(key) ?? make();
    this.#once.set(key, value);
    return value;
  }

  int64(values: number | readonly number[]): Value {
    return this.once(`int64 ${JSON.stringify(values)}`, () => this.graph.int64(this.name('int64'), values));
  }

  scalar(value: number): Value {
    return this.once(`scalar ${value}`, () => this.graph.scalar(this.name('scalar'), value));
  }

  add(a: Value, b: Value): Value {
    return this.op('Add', [a, b]);
  }

  sub(a: Value, b: Value): Value {
    return this.op('Sub', [a, b]);
  }

  mul(a: Value, b: Value): Value {
    return this.op('Mul', [a, b]);
  }

  div(a: Value, b: Value): Value {
    return this.op('Div', [a, b]);
  }

  /**
   * alpha · a · b.
   * @param changes `transA` and `transB` transpose the last two axes of an operand with so many dimensions
   */
  product(a: Value, b: Value, changes: { transA?: number; transB?: number; alpha?: number }): Value {
    const { transA, transB, alpha } = changes;
    if (this.#fuses) {
      const attributes = {
        ...(transA ? { transA: 1 } : {}),
        ...(transB ? { transB: 1 } : {}),
        ...(alpha === undefined ? {} : { alpha }),
      };
      return this.op('FusedMatMul', [a, b], attributes);
    }
    const turned = (x: Value, rank: number | undefined) =>
      rank === undefined ? x : this.transpose(x, lastSwapped(rank));
    const product = this.op('MatMul', [turned(a, transA), turned(b, transB)]);
    return alpha === undefined ? product : this.mul(product, this.scalar(alpha));
  }

  cast(x: Value, to: DataType): Value {
    return this.op('Cast', [x], { to });
  }

  /** int64 [rank], or its part from `start` to `end`. */
  shape(x: Value, start?: number, end?: number): Value {
    return this.op('Shape', [x], start === undefined ? {} : end === undefined ? { start } : { start, end });
  }

  reshape(x: Value, shape: readonly number[] | Value): Value {
    return this.op('Reshape', [x, typeof shape === 'string' ? shape : this.int64(shape)]);
  }

  /** `x` in the shape of `other`. A run fails if it has another number of elements. */
  reshapeLike(x: Value, other: Value): Value {
    return this.reshape(x, this.shape(other));
  }

  transpose(x: Value, perm: readonly number[]): Value {
    return this.op('Transpose', [x], { perm });
  }

  unsqueeze(x: Value, axis: number): Value {
    return this.op('Unsqueeze', [x, this.int64([axis])]);
  }

  /** Sum or mean along the last axis, which stays with size 1. */
  sumLast(x: Value): Value {
    return this.op('ReduceSum', [x, this.int64([-1])], { keepdims: 1 });
  }

  meanLast(x: Value): Value {
    return this.op('ReduceMean', [x, this.int64([-1])], { keepdims: 1 });
  }

  /** Sum over all axes before those of `dims`: [..., dims] → [dims]. */
  sumLeading(x: Value, dims: readonly number[]): Value {
    return this.op('ReduceSum', [this.reshape(x, [-1, ...dims]), this.int64([0])], { keepdims: 0 });
  }

  /** Sum of all elements: a scalar. */
  sumAll(x: Value): Value {
    return this.op('ReduceSum', [x], { keepdims: 0 });
  }

  zerosLike(x: Value): Value {
    return this.op('ConstantOfShape', [this.shape(x)]);
  }
}

/** The axes of so many dimensions, with the last two in each other's place. */
const lastSwapped = (rank: number) => [...Array.from({ length: rank - 2 }, (_, axis) => axis), rank - 1, rank - 2];
