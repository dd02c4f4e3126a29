/**
 * The language model's graph, which computes both prompt chunks and decode steps. Keys and values go in and out in the
 * same buffers, soft tokens replace input embeddings at given positions, and logits are computed for the wanted
 * positions only.
 *
 * Inputs: `input_ids` int64 [batch, sequence] · `soft_tokens` float32 [soft, hidden] · `soft_positions` int64 [soft],
 * indices into the batch × sequence rows · `logit_rows` int64 [rows], which of the sequence's positions get logits ·
 * `seqlens_k` int32 [batch], (valid positions after this step) - 1 · `total_sequence_length` int32 scalar ·
 * `past.{layer}.key|value` [batch, kv_head, position, head_dim], in the graph's own type: float32, or float16 for CUDA,
 * whose attention accepts no other.
 * Outputs: `logits` float32 [batch, rows, vocab] · `present.{layer}.key|value`, shaped as the past.
 * `soft` and `rows` may be 0. Without rows neither the last layer's MLP nor the output projection costs anything.
 */
import { expectTensor, type TensorSource } from '../checkpoint/checkpoint.ts';
import type { DecoderSpec } from '../checkpoint/spec.ts';
import { type Dim, Graph, type Value } from './graph.ts';
import { type LayerFormats, lookUp, multiply, storeMatrix, type TableFormat } from './linear.ts';
import { Transformer, tensorPrefix } from './transformer.ts';

interface DecoderFormat {
  readonly layers: LayerFormats;
  /** The embedding table and the output projection. */
  readonly vocabulary: TableFormat;
  /** Positions in the rotation tables: no sequence may be longer. */
  readonly maxPositions: number;
  readonly floats?: Graph['floats'];
}

/** @throws ServingError checkpoint_invalid for a tensor that is missing or has the wrong shape. */
export function buildDecoder(spec: DecoderSpec, source: TensorSource, format: DecoderFormat): Graph {
  const graph = new Graph(format.floats);
  const { hidden, vocab, kvHeads, headDim } = spec;
  const ids = graph.input('input_ids', 'int64', ['batch', 'sequence']);
  const softTokens = graph.input('soft_tokens', 'float32', ['soft', hidden]);
  const softPositions = graph.input('soft_positions', 'int64', ['soft']);
  const logitRows = graph.input('logit_rows', 'int64', ['rows']);
  const lastPositions = graph.input('seqlens_k', 'int32', ['batch']);
  const totalPositions = graph.input('total_sequence_length', 'int32', []);
  const cache: Dim[] = ['batch', kvHeads, 'capacity', headDim];

  const flat = graph.node('Reshape', 'ids.flat', [ids, graph.int64('flat.shape', [-1])]);
  const tableName = `${tensorPrefix(source)}embed_tokens.weight`;
  const matrix = {
    name: 'embed',
    rows: vocab,
    columns: hidden,
    read: expectTensor(source, tableName, [vocab, hidden]),
  };
  const table = storeMatrix(graph, matrix, format.vocabulary, spec.tied ? 'both' : 'lookUp');
  const embedded = lookUp(graph, 'ids.embedded', flat, table);
  const at = graph.node('Unsqueeze', 'soft.indices', [softPositions, graph.int64('soft.axes', [1])]);
  const soft = toFloats(graph, softTokens, 'soft.floats');
  const embeddings = graph.node('ScatterND', 'embeddings', [embedded, at, soft]);

  const batchShape = graph.node('Shape', 'batch.shape', [ids]);
  const keep = rowPicker(graph, batchShape, logitRows);
  const final = new Transformer(graph, spec, source, format.layers).apply(
    embeddings,
    {
      batchShape,
      lastPositions,
      totalPositions,
      maxPositions: format.maxPositions,
      past: (layer) => [
        graph.input(`past.${layer}.key`, graph.floats, cache),
        graph.input(`past.${layer}.value`, graph.floats, cache),
      ],
      present: (layer) => [`present.${layer}.key`, `present.${layer}.value`],
    },
    keep,
  );

  const head = spec.tied
    ? table
    : storeMatrix(
        graph,
        {
          name: 'lm_head',
          rows: vocab,
          columns: hidden,
          read: expectTensor(source, 'lm_head.weight', [vocab, hidden]),
        },
        format.vocabulary,
        'multiply',
      );
  const flatLogits = multiply(graph, 'logits.flat', final, head);
  const batch = graph.node('Shape', 'batch.size', [ids], { start: 0, end: 1 });
  const rows = graph.node('Shape', 'rows.size', [logitRows]);
  const shape = graph.node('Concat', 'logits.shape', [batch, rows, graph.int64('vocab.size', [vocab])], { axis: 0 });
  const wide =
    graph.floats === 'float32' ? flatLogits : graph.node('Cast', 'logits.wide', [flatLogits], { to: 'float32' });
  const logits = graph.node('Reshape', 'logits', [wide, shape], { allowzero: 1 });
  graph.output(logits, 'float32', ['batch', 'rows', vocab]);
  for (let layer = 0; layer < spec.layers; layer++) {
    for (const part of ['key', 'value']) graph.output(`present.${layer}.${part}` as Value, graph.floats, cache);
  }
  return graph;
}

/** Soft tokens come in 32 bits, whatever type the graph computes in. */
function toFloats(graph: Graph, value: Value, name: string): Value {
  return graph.floats === 'float32' ? value : graph.node('Cast', name, [value], { to: graph.floats });
}

/** Picks the same positions of every sequence: [batch × sequence, width] → [batch × rows, width]. */
function rowPicker(graph: Graph, batchShape: Value, logitRows: Value): (flat: Value, name: string) => Value {
  const [one, zero] = [graph.int64('keep.one', [1]), graph.int64('keep.zero', 0)];
  // Row b × sequence + r of the flat activations, for each b of the batch and each wanted r.
  const sequence = graph.node('Gather', 'keep.sequence', [batchShape, graph.int64('keep.sequence_axis', 1)], {
    axis: 0,
  });
  const rowCount = graph.node('Gather', 'keep.batch', [batchShape, zero], { axis: 0 });
  const end = graph.node('Mul', 'keep.end', [rowCount, sequence]);
  const starts = graph.node('Range', 'keep.starts', [zero, end, sequence]);
  const column = graph.node('Unsqueeze', 'keep.column', [starts, one]);
  const grid = graph.node('Add', 'keep.grid', [column, logitRows]);
  const indices = graph.node('Reshape', 'keep.indices', [grid, graph.int64('keep.flat', [-1])]);
  return (flat, name) => graph.node('Gather', name, [flat, indices], { axis: 0 });
}
