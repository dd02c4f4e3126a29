/**
 * The layers that Qwen2, Llama and Qwen3 share: attention after a norm, with rotary positions and grouped heads, then a
 * gated MLP. The decoder graph and the encoders of these architectures are built on it.
 *
 * Activations are [batch, sequence, width] throughout.
 */
import { expectTensor, type TensorReader, type TensorSource } from '../checkpoint/checkpoint.ts';
import type { BlockLevels } from '../checkpoint/ggml-types.ts';
import type { DecoderSpec } from '../checkpoint/spec.ts';
import type { Graph, Value } from './graph.ts';
import { type LayerFormats, linear, type MatrixName, type WeightFormat } from './linear.ts';

export interface AttentionInputs {
  /** int32 [batch]: index of each row's last valid position. */
  readonly lastPositions: Value;
  /** int32 scalar: total number of positions. */
  readonly totalPositions: Value;
  /** Positions in the rotation tables. */
  readonly maxPositions: number;
  /** Keys and values of earlier positions per layer; absent if there are none. */
  readonly past?: (layer: number) => readonly [Value, Value];
  /**
   * Scales of keys and values per layer where they lie in int8: float32 [1, kvHeads, 1, headDim] each. With
   * them attention rounds what it writes, and reads levels, also those of its own tokens.
   */
  readonly kvScales?: (layer: number) => readonly [Value, Value];
  /** Names of the outputs for keys and values. */
  readonly present: (layer: number) => readonly [string, string];
  /**
   * Where given, queries and keys are rotated before attention, by an operator of their own: gradients need its result.
   * Positions can be chosen in no other way either: on the CPU, attention that rotates by itself ignores its
   * `position_ids` as long as there is no past (ONNX Runtime 1.30).
   */
  readonly rotation?: Rotation;
}

interface Rotation {
  /** int64 [batch, sequence], or [1] with the position of the first column. */
  readonly positionIds: Value;
  /** [1, 1, sequence, sequence], added to the scores; it may hide positions that the causal mask leaves. */
  readonly attentionBias?: Value;
}

/** The prefix of tensor names, which folders of causal language models have and bare encoders do not. */
export const tensorPrefix = (source: TensorSource) => (source.shapeOf('model.embed_tokens.weight') ? 'model.' : '');

/** Cosines and sines [positions, headDim / 2], rounded as in PyTorch: frequencies and angles in 32 bits. */
function rotationTables(spec: DecoderSpec, positions: number): { cos: Float32Array; sin: Float32Array } {
  const half = spec.headDim / 2;
  const cos = new Float32Array(positions * half);
  const sin = new Float32Array(positions * half);
  for (let i = 0; i < half; i++) {
    const frequency = Math.fround(1 / Math.fround(spec.ropeTheta ** Math.fround((2 * i) / spec.headDim)));
    for (let position = 0; position < positions; position++) {
      const angle = Math.fround(position * frequency);
      cos[position * half + i] = Math.cos(angle);
      sin[position * half + i] = Math.sin(angle);
    }
  }
  return { cos, sin };
}

/** Matrices below one another. If all of them are stored as levels and scales, so is the whole. */
function concatenate(readers: readonly TensorReader[]): TensorReader {
  const read = async () => joined(Float32Array, await inTurn(readers));
  const stored = readers.flatMap(({ levels }) => levels ?? []);
  if (stored.length < readers.length) return read;
  const levels = async (): Promise<BlockLevels> => {
    const parts = await inTurn(stored);
    return {
      bits: parts.some(({ bits }) => bits === 8) ? 8 : 4,
      levels: joined(
        Int8Array,
        parts.map((part) => part.levels),
      ),
      scales: joined(
        Float32Array,
        parts.map((part) => part.scales),
      ),
    };
  };
  return Object.assign(read, { levels });
}

async function inTurn<T>(readers: readonly (() => Promise<T>)[]): Promise<T[]> {
  const parts: T[] = [];
  for (const read of readers) parts.push(await read());
  return parts;
}

function joined<A extends Float32Array | Int8Array>(Kind: new (length: number) => A, parts: readonly A[]): A {
  const all = new Kind(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** Inputs of attention that stand before its scales, and that no graph has: positions, a bias, a sink. */
const NO_EXTRAS = [undefined, undefined, undefined] as const;

const MLP: ReadonlySet<MatrixName> = new Set(['gate_proj', 'up_proj', 'down_proj']);

export class Transformer {
  readonly #graph: Graph;
  readonly #spec: DecoderSpec;
  readonly #source: TensorSource;
  readonly #prefix: string;
  readonly #formatOf: (layer: number, matrix: MatrixName) => WeightFormat;

  constructor(graph: Graph, spec: DecoderSpec, source: TensorSource, formats: LayerFormats) {
    this.#graph = graph;
    this.#spec = spec;
    this.#source = source;
    this.#prefix = tensorPrefix(source);
    this.#formatOf = typeof formats === 'function' ? formats : () => formats;
  }

  /**
   * Applies all layers and the final norm.
   * @param embeddings [batch, sequence, hidden]
   * @param keep picks the wanted positions; it is applied in the last layer as soon as no position depends on another
   * @returns what is kept of [batch, sequence, hidden]
   */
  apply(
    embeddings: Value,
    attention: AttentionInputs,
    keep: (value: Value, name: string) => Value = (value) => value,
  ): Value {
    const { layers, headDim } = this.#spec;
    const tables = rotationTables(this.#spec, attention.maxPositions);
    const dims = [attention.maxPositions, headDim / 2];
    const cos = this.#graph.weight('rotary.cos', dims, async () => tables.cos);
    const sin = this.#graph.weight('rotary.sin', dims, async () => tables.sin);
    let residual = embeddings;
    let normed = this.#graph.node(
      'SimplifiedLayerNormalization',
      'layers.0.input_norm',
      [embeddings, this.#norm('layers.0.input_layernorm')],
      { axis: -1, epsilon: this.#spec.normEps },
    );
    for (let layer = 0; layer < layers; layer++) {
      const name = `layers.${layer}`;
      let mixed = this.#attention(layer, normed, attention, cos, sin);
      if (layer === layers - 1) {
        mixed = keep(mixed, `${name}.kept_attention`);
        residual = keep(residual, `${name}.kept_residual`);
      }
      const attended = this.#linear(layer, 'o_proj', mixed, this.#spec.hidden, this.#spec.heads * headDim);
      [normed, residual] = this.#addAndNorm(`${name}.post_attention_layernorm`, attended, residual);
      const gated = this.#mlp(layer, normed);
      const next = layer === layers - 1 ? 'norm' : `layers.${layer + 1}.input_layernorm`;
      [normed, residual] = this.#addAndNorm(next, gated, residual);
    }
    return normed;
  }

  /** Grouped-query attention of one layer: [batch, sequence, heads × headDim]. */
  #attention(layer: number, input: Value, attention: AttentionInputs, cos: Value, sin: Value): Value {
    const { heads, kvHeads, headDim, qkNorm } = this.#spec;
    const name = `layers.${layer}.self_attn`;
    const [query, key, value] = qkNorm
      ? this.#normedHeads(layer, input)
      : [this.#packedHeads(layer, input), undefined, undefined];
    const [pastKey, pastValue] = attention.past?.(layer) ?? [];
    const outputs = [`${name}.mixed`, ...attention.present(layer)];
    const lengths = [attention.lastPositions, attention.totalPositions];
    const { rotation } = attention;
    const scales = attention.kvScales?.(layer);
    const rotated = rotation && this.#rotated(name, query, key, value, rotation.positionIds, cos, sin);
    const [mixed] = rotated
      ? this.#graph.nodeWith(
          'GroupQueryAttention',
          outputs,
          [...rotated, pastKey, pastValue, ...lengths, undefined, undefined, undefined, rotation.attentionBias],
          { num_heads: heads, kv_num_heads: kvHeads, do_rotary: 0, scale: 1 / Math.sqrt(headDim) },
        )
      : this.#graph.nodeWith(
          'GroupQueryAttention',
          outputs,
          [query, key, value, pastKey, pastValue, ...lengths, cos, sin, ...(scales ? [...NO_EXTRAS, ...scales] : [])],
          {
            num_heads: heads,
            kv_num_heads: kvHeads,
            do_rotary: 1,
            rotary_interleaved: 0,
            ...(scales && { k_quant_type: 'PER_CHANNEL', v_quant_type: 'PER_CHANNEL', kv_cache_bit_width: 8 }),
          },
        );
    return mixed!;
  }

  /**
   * Rotated queries and keys, and the values.
   * @param query queries alone, or without `key` and `value` all three packed
   */
  #rotated(
    name: string,
    query: Value,
    key: Value | undefined,
    value: Value | undefined,
    positionIds: Value,
    cos: Value,
    sin: Value,
  ): [Value, Value, Value] {
    const { heads, kvHeads, headDim } = this.#spec;
    let parts = [query, key, value];
    if (key === undefined) {
      const sizes = this.#graph.int64(`${name}.sizes`, [heads * headDim, kvHeads * headDim, kvHeads * headDim]);
      const names = ['query', 'key', 'value'].map((part) => `${name}.${part}`);
      parts = this.#graph.nodeWith('Split', names, [query, sizes], { axis: -1 });
    }
    const [q, k, v] = parts;
    const rotate = (x: Value | undefined, part: string, count: number) =>
      this.#graph.node('RotaryEmbedding', `${name}.${part}_rotated`, [x, positionIds, cos, sin], {
        interleaved: 0,
        num_heads: count,
      });
    return [rotate(q, 'query', heads), rotate(k, 'key', kvHeads), v!];
  }

  /** Queries, keys and values from one matrix: [batch, sequence, (heads + 2 × kvHeads) × headDim]. */
  #packedHeads(layer: number, input: Value): Value {
    const { hidden, heads, kvHeads, headDim, qkvBias } = this.#spec;
    const name = `layers.${layer}.self_attn`;
    const parts = [
      ['q_proj', heads * headDim],
      ['k_proj', kvHeads * headDim],
      ['v_proj', kvHeads * headDim],
    ] as const;
    const rows = (heads + 2 * kvHeads) * headDim;
    return linear(
      this.#graph,
      input,
      {
        name: `${name}.qkv`,
        rows,
        columns: hidden,
        read: concatenate(parts.map(([part, width]) => this.#tensor(`${name}.${part}.weight`, [width, hidden]))),
        bias: qkvBias
          ? concatenate(parts.map(([part, width]) => this.#tensor(`${name}.${part}.bias`, [width])))
          : undefined,
      },
      this.#formatOf(layer, 'qkv'),
    );
  }

  /** Queries, keys and values from three matrices, with queries and keys normalised per head. */
  #normedHeads(layer: number, input: Value): [Value, Value, Value] {
    const { hidden, heads, kvHeads, headDim, normEps } = this.#spec;
    const name = `layers.${layer}.self_attn`;
    const project = (part: 'q' | 'k' | 'v', width: number) => this.#linear(layer, `${part}_proj`, input, width, hidden);
    const normed = (part: 'q' | 'k', width: number) => {
      const perHead = this.#reshape(`${name}.${part}_heads`, project(part, width), [0, 0, -1, headDim]);
      const scale = this.#graph.weight(
        `${name}.${part}_norm.weight`,
        [headDim],
        this.#tensor(`${name}.${part}_norm.weight`, [headDim]),
      );
      const value = this.#graph.node('SimplifiedLayerNormalization', `${name}.${part}_norm`, [perHead, scale], {
        axis: -1,
        epsilon: normEps,
      });
      return this.#reshape(`${name}.${part}_normed`, value, [0, 0, width]);
    };
    return [normed('q', heads * headDim), normed('k', kvHeads * headDim), project('v', kvHeads * headDim)];
  }

  /** SiLU(gate) × up, then down. */
  #mlp(layer: number, input: Value): Value {
    const { hidden, intermediate } = this.#spec;
    const name = `layers.${layer}.mlp`;
    const gate = this.#linear(layer, 'gate_proj', input, intermediate, hidden);
    const up = this.#linear(layer, 'up_proj', input, intermediate, hidden);
    // QuickGelu with alpha 1 is SiLU in one pass.
    const silu = this.#graph.node('QuickGelu', `${name}.silu`, [gate], { alpha: 1 });
    const product = this.#graph.node('Mul', `${name}.product`, [silu, up]);
    return this.#linear(layer, 'down_proj', product, hidden, intermediate);
  }

  /** Adds both, and returns the normalised sum and the sum itself. */
  #addAndNorm(name: string, a: Value, b: Value): [Value, Value] {
    const [normed, , , sum] = this.#graph.nodeWith(
      'SkipSimplifiedLayerNormalization',
      [`${name}.normed`, '', '', `${name}.sum`],
      [a, b, this.#norm(name)],
      { epsilon: this.#spec.normEps },
    );
    return [normed!, sum!];
  }

  #norm(name: string): Value {
    const shape = [this.#spec.hidden];
    return this.#graph.weight(`${name}.weight`, shape, this.#tensor(`${name}.weight`, shape));
  }

  #linear(layer: number, matrix: MatrixName, input: Value, rows: number, columns: number): Value {
    const part = MLP.has(matrix) ? 'mlp' : 'self_attn';
    const name = `layers.${layer}.${part}.${matrix}`;
    const read = this.#tensor(`${name}.weight`, [rows, columns]);
    return linear(this.#graph, input, { name, rows, columns, read }, this.#formatOf(layer, matrix));
  }

  #tensor(name: string, shape: readonly number[]): TensorReader {
    return expectTensor(this.#source, this.#prefix + name, shape);
  }

  /** A size of 0 stands for the value's own size at that place. */
  #reshape(name: string, value: Value, shape: readonly number[]): Value {
    return this.#graph.node('Reshape', name, [value, this.#graph.int64(`${name}.shape`, shape)]);
  }
}
