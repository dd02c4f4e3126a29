/**
 * An encoder's graph with its pooling: token ids of chunks go in, and one embedding per chunk comes out.
 *
 * Inputs: `input_ids` int64 [batch, sequence], padded on the right with any id of the vocabulary · `lengths` int32
 * [batch], tokens of each row, at least 1. Output: `embeddings` float32 [batch, dim].
 *
 * For k > 1 soft tokens per chunk there is a second output, `windows` float32 [batch, k, dim]: the n tokens of a row
 * are cut into k runs, of which run w has the tokens from ⌊w·n/k⌋ to before ⌊(w+1)·n/k⌋, and each run's hidden states
 * after the last layer are averaged, whatever pools the embedding. With fewer tokens than runs, a run that would be
 * empty has the one token at which it begins.
 */
import { expectTensor, type TensorSource } from '../checkpoint/checkpoint.ts';
import { type DecoderSpec, isDecoder, type NetworkSpec } from '../checkpoint/spec.ts';
import { bertLayers, type EncoderInputs } from './bert.ts';
import { Graph, type Value } from './graph.ts';
import { jinaLayers } from './jina.ts';
import { lookUp, storeMatrix, type TableFormat } from './linear.ts';
import { Transformer, tensorPrefix } from './transformer.ts';

/** How hidden states of a chunk's tokens become one vector: the last or the first token's state, or the mean of all. */
export type Pooling = 'last' | 'mean' | 'cls';

interface EncoderFormat {
  readonly weights: TableFormat;
  readonly pooling: Pooling;
  /** Whether embeddings are scaled to length 1. */
  readonly normalize: boolean;
  /** Longest input, in tokens. */
  readonly maxTokens: number;
  /** k, the soft tokens of a chunk; 1 if it is not given. */
  readonly softPerChunk?: number | undefined;
}

/** @throws ServingError checkpoint_invalid for a tensor that is missing or has the wrong shape. */
export function buildEncoder(spec: NetworkSpec, source: TensorSource, format: EncoderFormat): Graph {
  const graph = new Graph();
  const inputIds = graph.input('input_ids', 'int64', ['batch', 'sequence']);
  const lengths = graph.node('Cast', 'lengths.int64', [graph.input('lengths', 'int32', ['batch'])], { to: 'int64' });
  const last = graph.node('Sub', 'lengths.last', [lengths, graph.int64('lengths.one', 1)]);
  const sequence = graph.node('Shape', 'sequence.size', [inputIds], { start: 1, end: 2 });
  const total = graph.node('Squeeze', 'sequence.scalar', [sequence]);
  const inputs: EncoderInputs = {
    ids: inputIds,
    sequence,
    lastPositions: graph.node('Cast', 'positions.last', [last], { to: 'int32' }),
    totalPositions: graph.node('Cast', 'positions.total', [total], { to: 'int32' }),
  };
  const hidden = isDecoder(spec)
    ? decoderLayers(graph, spec, source, format, inputs)
    : spec.architecture === 'jina'
      ? jinaLayers(graph, spec, source, format.weights, inputs)
      : bertLayers(graph, spec, source, format.weights, inputs);
  const pooledName = format.normalize ? 'pooled' : 'embeddings';
  const pool = {
    last: () => poolLast(graph, pooledName, hidden, last),
    cls: () => graph.node('Gather', pooledName, [hidden, graph.int64('first.index', 0)], { axis: 1 }),
    mean: () => poolMean(graph, pooledName, tokensOf(graph, 'mean', hidden, total, lengths)),
  };
  const pooled = pool[format.pooling]();
  const scaled = (name: string, value: Value) =>
    format.normalize ? graph.node('LpNormalization', name, [value], { axis: -1, p: 2 }) : value;
  graph.output(scaled('embeddings', pooled), 'float32', ['batch', spec.hidden]);
  const { softPerChunk: count = 1 } = format;
  if (count > 1) {
    const name = format.normalize ? 'window.means' : 'windows';
    const means = poolWindows(graph, name, tokensOf(graph, 'window', hidden, total, lengths), count);
    graph.output(scaled('windows', means), 'float32', ['batch', count, spec.hidden]);
  }
  return graph;
}

/** A language model as an encoder: its hidden states after the final norm, with causal attention as in its training. */
function decoderLayers(
  graph: Graph,
  spec: DecoderSpec,
  source: TensorSource,
  format: EncoderFormat,
  inputs: EncoderInputs,
): Value {
  const { hidden, vocab } = spec;
  const read = expectTensor(source, `${tensorPrefix(source)}embed_tokens.weight`, [vocab, hidden]);
  const table = storeMatrix(graph, { name: 'embed', rows: vocab, columns: hidden, read }, format.weights, 'lookUp');
  const embedded = lookUp(graph, 'embedded', inputs.ids, table);
  return new Transformer(graph, spec, source, format.weights).apply(embedded, {
    lastPositions: inputs.lastPositions,
    totalPositions: inputs.totalPositions,
    maxPositions: format.maxTokens,
    present: () => ['', ''],
  });
}

/** The hidden states [batch, sequence, dim] at each row's last token. */
function poolLast(graph: Graph, name: string, hidden: Value, last: Value): Value {
  const index = graph.node('Unsqueeze', 'last.index', [last, graph.int64('last.axes', [1])]);
  return graph.node('GatherND', name, [hidden, index], { batch_dims: 1 });
}

/** The tokens of rows, without what pads them. */
interface RowTokens {
  /** int64 [sequence] */
  readonly positions: Value;
  /** int64 [batch, 1]: the number of each row's tokens. */
  readonly counts: Value;
  /** float32 [batch, sequence, dim]: their hidden states. Padding may be NaN, so it is replaced by zeros. */
  readonly states: Value;
}

/**
 * @param prefix of the names of its values
 * @param sequence int64 scalar
 */
function tokensOf(graph: Graph, prefix: string, hidden: Value, sequence: Value, lengths: Value): RowTokens {
  const positions = graph.node('Range', `${prefix}.positions`, [
    graph.int64(`${prefix}.start`, 0),
    sequence,
    graph.int64(`${prefix}.step`, 1),
  ]);
  const counts = graph.node('Unsqueeze', `${prefix}.lengths`, [lengths, graph.int64(`${prefix}.row_axes`, [1])]);
  const valid = graph.node('Less', `${prefix}.valid`, [positions, counts]);
  const mask = graph.node('Unsqueeze', `${prefix}.mask`, [valid, graph.int64(`${prefix}.mask_axes`, [2])]);
  const states = graph.node('Where', `${prefix}.kept`, [mask, hidden, graph.scalar(`${prefix}.zero`, 0)]);
  return { positions, counts, states };
}

/** The mean of the hidden states over each row's tokens: [batch, dim]. */
function poolMean(graph: Graph, name: string, { counts, states }: RowTokens): Value {
  const sum = graph.node('ReduceSum', 'mean.sum', [states, graph.int64('mean.axes', [1])], { keepdims: 0 });
  return graph.node('Div', name, [sum, graph.node('Cast', 'mean.count', [counts], { to: 'float32' })]);
}

/** The mean of the hidden states over each run of a row's tokens: [batch, count, dim]. The file's top says which. */
function poolWindows(graph: Graph, name: string, { positions, counts, states }: RowTokens, count: number): Value {
  const each = Array.from({ length: count }, (_, i) => i);
  const edge = (part: string, shift: number) => {
    const numbers = graph.int64(
      `window.${part}_numbers`,
      each.map((i) => i + shift),
    );
    const shares = graph.node('Mul', `window.${part}_shares`, [counts, numbers]);
    return graph.node('Div', `window.${part}`, [shares, graph.int64(`window.${part}_count`, count)]);
  };
  const begins = edge('begins', 0);
  const next = graph.node('Add', 'window.next', [begins, graph.int64('window.one', 1)]);
  const ends = graph.node('Max', 'window.ends', [edge('cuts', 1), next]);
  // How many of a run's edges lie behind a token: 1 for a token within it.
  const axis = graph.int64('window.edge_axes', [2]);
  const before = (part: string, edges: Value) => {
    const column = graph.node('Unsqueeze', `window.${part}_column`, [edges, axis]);
    const isBefore = graph.node('Less', `window.before_${part}`, [positions, column]);
    return graph.node('Cast', `window.until_${part}`, [isBefore], { to: 'float32' });
  };
  const within = graph.node('Sub', 'window.within', [before('ends', ends), before('begins', begins)]);
  const sums = graph.node('MatMul', 'window.sums', [within, states]);
  const sizes = graph.node('ReduceSum', 'window.sizes', [within, graph.int64('window.size_axes', [2])], {
    keepdims: 1,
  });
  return graph.node('Div', name, [sums, sizes]);
}
