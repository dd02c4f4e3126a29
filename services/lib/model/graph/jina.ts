/**
 * JinaBERT's layers (Jina embeddings v2). Instead of positions there is a bias on attention that grows with the
 * distance (ALiBi, in both directions); the MLP is gated (GELU); norms follow each sum. Two published forms differ in
 * names and in two points:
 *
 * `jina-bert-implementation` (base-en): `mlp.gated_layers` holds gate, then value; `mlp.wo`, `mlp.layernorm`.
 * `jina-bert-v2-qk-post-norm` (base-code): queries and keys are normalised over all heads together (`layer_norm_q`,
 * `layer_norm_k`); `mlp.up_gated_layer` holds value, then gate; `mlp.down_layer`, `layer_norm_1`, `layer_norm_2`.
 */
import { expectTensor, type TensorReader, type TensorSource } from '../checkpoint/checkpoint.ts';
import type { JinaSpec } from '../checkpoint/spec.ts';
import type { EncoderInputs } from './bert.ts';
import type { Graph, Value } from './graph.ts';
import { linear, lookUp, storeMatrix, type TableFormat } from './linear.ts';

/** Hidden states after the last layer: [batch, sequence, hidden]. */
export function jinaLayers(
  graph: Graph,
  spec: JinaSpec,
  source: TensorSource,
  format: TableFormat,
  inputs: EncoderInputs,
): Value {
  return new JinaGraph(graph, spec, source, format, inputs).apply();
}

class JinaGraph {
  readonly #graph: Graph;
  readonly #spec: JinaSpec;
  readonly #source: TensorSource;
  readonly #format: TableFormat;
  readonly #inputs: EncoderInputs;
  readonly #prefix: string;
  /** Whether queries and keys are normalised, as in the form that was trained on code. */
  readonly #normedQueries: boolean;

  constructor(graph: Graph, spec: JinaSpec, source: TensorSource, format: TableFormat, inputs: EncoderInputs) {
    this.#graph = graph;
    this.#spec = spec;
    this.#source = source;
    this.#format = format;
    this.#inputs = inputs;
    this.#prefix = source.shapeOf('bert.embeddings.word_embeddings.weight') ? 'bert.' : '';
    const norm = `${this.#prefix}encoder.layer.0.attention.self.layer_norm_q.weight`;
    this.#normedQueries = source.shapeOf(norm) !== undefined;
  }

  apply(): Value {
    const { layers, intermediate, hidden } = this.#spec;
    const bias = this.#attentionBias();
    let states = this.#embeddings();
    for (let i = 0; i < layers; i++) {
      const layer = `encoder.layer.${i}`;
      const attended = this.#addAndNorm(
        `${layer}.attention.output.LayerNorm`,
        this.#attention(layer, states, bias),
        states,
      );
      if (this.#normedQueries) {
        const normed = this.#addAndNorm(`${layer}.layer_norm_1`, attended, states);
        const gated = this.#gated(layer, `${layer}.mlp.up_gated_layer`, normed, { value: 0, gate: intermediate });
        const mixed = this.#linear(`${layer}.mlp.down_layer`, gated, hidden, intermediate);
        states = this.#addAndNorm(`${layer}.layer_norm_2`, mixed, normed);
      } else {
        const gated = this.#gated(layer, `${layer}.mlp.gated_layers`, attended, { gate: 0, value: intermediate });
        const mixed = this.#linear(`${layer}.mlp.wo`, gated, hidden, intermediate);
        states = this.#addAndNorm(`${layer}.mlp.layernorm`, mixed, attended);
      }
    }
    return states;
  }

  /** The sum of word and token type 0, normalised: [batch, sequence, hidden]. */
  #embeddings(): Value {
    const { hidden, vocab, tokenTypes, normEps } = this.#spec;
    const read = this.#tensor('embeddings.word_embeddings.weight', [vocab, hidden]);
    const table = storeMatrix(
      this.#graph,
      { name: 'words', rows: vocab, columns: hidden, read },
      this.#format,
      'lookUp',
    );
    const words = lookUp(this.#graph, 'words.embedded', this.#inputs.ids, table);
    const readTypes = this.#tensor('embeddings.token_type_embeddings.weight', [tokenTypes, hidden]);
    const type = this.#graph.weight('token_type_0', [hidden], async () => (await readTypes()).slice(0, hidden));
    const sum = this.#graph.node('Add', 'embeddings.sum', [words, type]);
    return this.#norm('embeddings.LayerNorm', sum, normEps);
  }

  /** The bias per head, -slope × distance between two positions: [1, heads, sequence, sequence]. */
  #attentionBias(): Value {
    const graph = this.#graph;
    const { heads } = this.#spec;
    const last = graph.node('Squeeze', 'alibi.sequence', [this.#inputs.sequence]);
    const [start, step] = [graph.int64('alibi.start', 0), graph.int64('alibi.step', 1)];
    const positions = graph.node('Cast', 'alibi.positions', [graph.node('Range', 'alibi.range', [start, last, step])], {
      to: 'float32',
    });
    const column = graph.node('Unsqueeze', 'alibi.column', [positions, graph.int64('alibi.axes', [1])]);
    const distance = graph.node('Abs', 'alibi.distance', [graph.node('Sub', 'alibi.offset', [positions, column])]);
    const slopes = graph.weight('alibi.slopes', [1, heads, 1, 1], async () =>
      alibiSlopes(heads).map((slope) => -slope),
    );
    return graph.node('Mul', 'alibi.bias', [slopes, distance]);
  }

  /** Attention after its output projection: [batch, sequence, hidden]. */
  #attention(layer: string, states: Value, bias: Value): Value {
    const graph = this.#graph;
    const { hidden, heads, normEps } = this.#spec;
    const name = `${layer}.attention`;
    const project = (part: 'query' | 'key' | 'value') => {
      const projected = this.#linear(`${name}.self.${part}`, states, hidden, hidden);
      return this.#normedQueries && part !== 'value'
        ? this.#norm(`${name}.self.layer_norm_${part[0]}`, projected, normEps)
        : projected;
    };
    const { lastPositions, totalPositions } = this.#inputs;
    const unused = [undefined, undefined, undefined];
    const mixed = graph.node(
      'GroupQueryAttention',
      `${name}.mixed`,
      [project('query'), project('key'), project('value'), undefined, undefined].concat(
        [lastPositions, totalPositions],
        unused,
        [bias],
      ),
      { num_heads: heads, kv_num_heads: heads, causal: 0 },
    );
    return this.#linear(`${name}.output.dense`, mixed, hidden, hidden);
  }

  /** GELU(gate) × value. Both come from one matrix [2 × intermediate, hidden]; `at` gives their first rows. */
  #gated(layer: string, name: string, input: Value, at: { readonly gate: number; readonly value: number }): Value {
    const { hidden, intermediate } = this.#spec;
    const readBoth = this.#tensor(`${name}.weight`, [2 * intermediate, hidden]);
    const half = (part: 'gate' | 'value') => {
      const read: TensorReader = async () =>
        (await readBoth()).slice(at[part] * hidden, (at[part] + intermediate) * hidden);
      return linear(
        this.#graph,
        input,
        { name: `${name}.${part}`, rows: intermediate, columns: hidden, read },
        this.#format,
      );
    };
    const gate = this.#graph.node('Gelu', `${layer}.mlp.gelu`, [half('gate')]);
    return this.#graph.node('Mul', `${layer}.mlp.product`, [gate, half('value')]);
  }

  #linear(name: string, input: Value, rows: number, columns: number): Value {
    const read = this.#tensor(`${name}.weight`, [rows, columns]);
    const bias = this.#tensor(`${name}.bias`, [rows]);
    return linear(this.#graph, input, { name, rows, columns, read, bias }, this.#format);
  }

  #addAndNorm(name: string, a: Value, b: Value): Value {
    return this.#graph.node('SkipLayerNormalization', `${name}.normed`, [a, b, ...this.#normWeights(name)], {
      epsilon: this.#spec.normEps,
    });
  }

  #norm(name: string, input: Value, epsilon: number): Value {
    return this.#graph.node('LayerNormalization', `${name}.normed`, [input, ...this.#normWeights(name)], {
      axis: -1,
      epsilon,
    });
  }

  #normWeights(name: string): Value[] {
    const shape = [this.#spec.hidden];
    return ['weight', 'bias'].map((part) =>
      this.#graph.weight(`${name}.${part}`, shape, this.#tensor(`${name}.${part}`, shape)),
    );
  }

  #tensor(name: string, shape: readonly number[]): TensorReader {
    return expectTensor(this.#source, this.#prefix + name, shape);
  }
}

/**
 * The slope of each head: a geometric sequence that begins with 2^(-8/n), where n is the largest power of two within
 * `heads`. Further heads take every other slope of the sequence for 2n.
 */
function alibiSlopes(heads: number): Float32Array {
  const n = 2 ** Math.floor(Math.log2(heads));
  return Float32Array.from({ length: heads }, (_, i) =>
    i < n ? 2 ** ((-8 * (i + 1)) / n) : 2 ** ((-4 * (2 * (i - n) + 1)) / n),
  );
}
