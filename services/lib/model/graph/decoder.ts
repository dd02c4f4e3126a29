/**
 * The language model's graph, which computes both prompt chunks and decode steps. Keys and values go in and out in the
 * same buffers, soft tokens replace input embeddings at given positions, and logits are computed for the wanted
 * positions only. One graph serves the CPU and GPUs: there is no arithmetic on shapes, which a GPU would leave to the
 * CPU, so that every node runs on the device.
 *
 * Inputs: `input_ids` int64 [batch, sequence] · `soft_tokens` float32 [soft, hidden] · `soft_positions` int64
 * [soft, 2], the place of each soft token as (sequence of the batch, position) · `logit_rows` int64 [rows], which of
 * every sequence's positions get logits · `seqlens_k` int32 [batch], (valid positions after this step) - 1 ·
 * `total_sequence_length` int32 scalar · `past.{layer}.key|value` [batch, kv_head, position, head_dim], in the graph's
 * own type: float32, or float16 for CUDA, whose attention accepts no other. With KV in int8 the past is int8,
 * and `kv_scale.{layer}.key|value` float32 [1, kv_head, 1, head_dim] says what a level is worth in each channel.
 * Outputs: `logits` float32 [batch × rows, vocab] · `present.{layer}.key|value`, shaped as the past.
 * `soft` and `rows` may be 0. Without rows neither the last layer's MLP nor the output projection costs anything.
 */
import { expectTensor, type TensorSource } from '../checkpoint/checkpoint.ts';
import type { DecoderSpec } from '../checkpoint/spec.ts';
import { type Dim, Graph, type Value } from './graph.ts';
import { type LayerFormats, lookUp, multiply, storeMatrix, type TableFormat } from './linear.ts';
import { scaleInput } from './prompt-graph.ts';
import { Transformer, tensorPrefix } from './transformer.ts';

interface DecoderFormat {
  readonly layers: LayerFormats;
  /** The embedding table and the output projection. */
  readonly vocabulary: TableFormat;
  /** Positions in the rotation tables: no sequence may be longer. */
  readonly maxPositions: number;
  readonly floats?: Graph['floats'];
  /** Whether keys and values lie in int8; not with `floats` of 16. */
  readonly int8Kv?: boolean;
}

/** @throws ServingError checkpoint_invalid for a tensor that is missing or has the wrong shape. */
export function buildDecoder(spec: DecoderSpec, source: TensorSource, format: DecoderFormat): Graph {
  const graph = new Graph(format.floats);
  const { hidden, vocab, kvHeads, headDim } = spec;
  const ids = graph.input('input_ids', 'int64', ['batch', 'sequence']);
  const softTokens = graph.input('soft_tokens', 'float32', ['soft', hidden]);
  const softPositions = graph.input('soft_positions', 'int64', ['soft', 2]);
  const logitRows = graph.input('logit_rows', 'int64', ['rows']);
  const lastPositions = graph.input('seqlens_k', 'int32', ['batch']);
  const totalPositions = graph.input('total_sequence_length', 'int32', []);
  const cache: Dim[] = ['batch', kvHeads, 'capacity', headDim];
  const kvType = format.int8Kv ? 'int8' : graph.floats;
  const scale = (layer: number, part: 'key' | 'value') =>
    graph.input(scaleInput(layer, part), 'float32', [1, kvHeads, 1, headDim]);

  const tableName = `${tensorPrefix(source)}embed_tokens.weight`;
  const matrix = {
    name: 'embed',
    rows: vocab,
    columns: hidden,
    read: expectTensor(source, tableName, [vocab, hidden]),
  };
  const table = storeMatrix(graph, matrix, format.vocabulary, spec.tied ? 'both' : 'lookUp');
  const embedded = lookUp(graph, 'ids.embedded', ids, table);
  const soft = toFloats(graph, softTokens, 'soft.floats');
  const embeddings = graph.node('ScatterND', 'embeddings', [embedded, softPositions, soft]);
  const kept = new Transformer(graph, spec, source, format.layers).apply(
    embeddings,
    {
      lastPositions,
      totalPositions,
      maxPositions: format.maxPositions,
      past: (layer) => [
        graph.input(`past.${layer}.key`, kvType, cache),
        graph.input(`past.${layer}.value`, kvType, cache),
      ],
      ...(format.int8Kv && { kvScales: (layer) => [scale(layer, 'key'), scale(layer, 'value')] }),
      present: (layer) => [`present.${layer}.key`, `present.${layer}.value`],
    },
    (value, name) => graph.node('Gather', name, [value, logitRows], { axis: 1 }),
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
  // A tied table in floats multiplies two dimensions only. Where its shape is constant, a Reshape is another name for
  // the same memory, and no kernel: 3 us of CPU time each on the CPU, and 5 us with WebGPU (lavapipe), where an
  // addition takes 230. Graphs have this one, one after a look-up in fewer bits, and Qwen3's have four in each layer.
  const final = graph.node('Reshape', 'final.rows', [kept, graph.int64('final.shape', [-1, hidden])]);
  const wide = graph.floats === 'float32';
  const product = multiply(graph, wide ? 'logits' : 'logits.narrow', final, head);
  const logits = wide ? product : graph.node('Cast', 'logits', [product], { to: 'float32' });
  graph.output(logits, 'float32', ['batch_rows', vocab]);
  for (let layer = 0; layer < spec.layers; layer++) {
    for (const part of ['key', 'value']) graph.output(`present.${layer}.${part}` as Value, kvType, cache);
  }
  return graph;
}

/** Soft tokens come in 32 bits, whatever type the graph computes in. */
function toFloats(graph: Graph, value: Value, name: string): Value {
  return graph.floats === 'float32' ? value : graph.node('Cast', name, [value], { to: graph.floats });
}
