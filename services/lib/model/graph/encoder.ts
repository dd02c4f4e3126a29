/**
 * An encoder's graph with its pooling: token ids of chunks go in, and one embedding per chunk comes out.
 *
 * Inputs: `input_ids` int64 [batch, sequence], padded on the right with any id of the vocabulary · `lengths` int32
 * [batch], tokens of each row, at least 1. Output: `embeddings` float32 [batch, dim].
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
    mean: () => poolMean(graph, pooledName, hidden, total, lengths),
  };
  const pooled = pool[format.pooling]();
  const embeddings = format.normalize
    ? graph.node('LpNormalization', 'embeddings', [pooled], { axis: -1, p: 2 })
    : pooled;
  graph.output(embeddings, 'float32', ['batch', spec.hidden]);
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

/**
 * The mean of the hidden states [batch, sequence, dim] over each row's tokens. Padding may be NaN, so it is replaced.
 */
function poolMean(graph: Graph, name: string, hidden: Value, sequence: Value, lengths: Value): Value {
  const positions = graph.node('Range', 'mean.positions', [
    graph.int64('mean.start', 0),
    sequence,
    graph.int64('mean.step', 1),
  ]);
  const columns = graph.node('Unsqueeze', 'mean.lengths', [lengths, graph.int64('mean.row_axes', [1])]);
  const valid = graph.node('Less', 'mean.valid', [positions, columns]);
  const mask = graph.node('Unsqueeze', 'mean.mask', [valid, graph.int64('mean.mask_axes', [2])]);
  const kept = graph.node('Where', 'mean.kept', [mask, hidden, graph.scalar('mean.zero', 0)]);
  const sum = graph.node('ReduceSum', 'mean.sum', [kept, graph.int64('mean.axes', [1])], { keepdims: 0 });
  return graph.node('Div', name, [sum, graph.node('Cast', 'mean.count', [columns], { to: 'float32' })]);
}
