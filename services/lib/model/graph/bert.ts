/**
 * BERT's layers (MiniLM, BGE, E5), and RoBERTa's (UniXcoder), which differ in the first row of the learned positions:
 * bidirectional attention, norms after each sum.
 */
import { expectTensor, type TensorSource } from '../checkpoint/checkpoint.ts';
import type { BertSpec } from '../checkpoint/spec.ts';
import type { Graph, Value } from './graph.ts';
import { linear, lookUp, storeMatrix, type TableFormat } from './linear.ts';

/** The inputs of an encoder's layers. */
export interface EncoderInputs {
  /** int64 [batch, sequence] */
  readonly ids: Value;
  /** int64 [1]: the padded length. */
  readonly sequence: Value;
  /** int32 [batch]: index of each row's last token. */
  readonly lastPositions: Value;
  /** int32 scalar: the padded length. */
  readonly totalPositions: Value;
}

/** Hidden states after the last layer: [batch, sequence, hidden]. */
export function bertLayers(
  graph: Graph,
  spec: BertSpec,
  source: TensorSource,
  format: TableFormat,
  inputs: EncoderInputs,
): Value {
  const { hidden, intermediate, normEps } = spec;
  const prefix = source.shapeOf(`${spec.architecture}.embeddings.word_embeddings.weight`)
    ? `${spec.architecture}.`
    : '';
  const tensor = (name: string, shape: readonly number[]) => expectTensor(source, prefix + name, shape);
  const vector = (name: string) => graph.weight(name, [hidden], tensor(name, [hidden]));
  const project = (name: string, input: Value, rows: number, columns: number) => {
    const read = tensor(`${name}.weight`, [rows, columns]);
    return linear(graph, input, { name, rows, columns, read, bias: tensor(`${name}.bias`, [rows]) }, format);
  };
  const addAndNorm = (name: string, a: Value, b: Value) =>
    graph.node('SkipLayerNormalization', `${name}.normed`, [a, b, vector(`${name}.weight`), vector(`${name}.bias`)], {
      epsilon: normEps,
    });

  let states = embeddings(graph, spec, tensor, format, inputs);
  for (let layer = 0; layer < spec.layers; layer++) {
    const name = `encoder.layer.${layer}`;
    const heads = (['query', 'key', 'value'] as const).map((part) =>
      project(`${name}.attention.self.${part}`, states, hidden, hidden),
    );
    const mixed = graph.node(
      'GroupQueryAttention',
      `${name}.attention.mixed`,
      [...heads, undefined, undefined, inputs.lastPositions, inputs.totalPositions],
      { num_heads: spec.heads, kv_num_heads: spec.heads, causal: 0 },
    );
    const attended = project(`${name}.attention.output.dense`, mixed, hidden, hidden);
    const normed = addAndNorm(`${name}.attention.output.LayerNorm`, attended, states);
    const wide = project(`${name}.intermediate.dense`, normed, intermediate, hidden);
    const activated = graph.node('Gelu', `${name}.intermediate.gelu`, [wide]);
    states = addAndNorm(
      `${name}.output.LayerNorm`,
      project(`${name}.output.dense`, activated, hidden, intermediate),
      normed,
    );
  }
  return states;
}

/** The sum of word, position and token type 0, normalised: [batch, sequence, hidden]. */
function embeddings(
  graph: Graph,
  spec: BertSpec,
  tensor: (name: string, shape: readonly number[]) => () => Promise<Float32Array>,
  format: TableFormat,
  inputs: EncoderInputs,
): Value {
  const { hidden, vocab, positionRows, tokenTypes, firstPosition, normEps } = spec;
  const table = (part: string, rows: number) => tensor(`embeddings.${part}_embeddings.weight`, [rows, hidden]);
  const words = storeMatrix(
    graph,
    { name: 'words', rows: vocab, columns: hidden, read: table('word', vocab) },
    format,
    'lookUp',
  );
  const word = lookUp(graph, 'words.embedded', inputs.ids, words);
  const readPositions = table('position', positionRows);
  const readTypes = table('token_type', tokenTypes);
  // Tokens are padded on the right, so position p is row firstPosition + p. Type 0 is added to it beforehand.
  const positions = graph.weight('positions.weight', [positionRows - firstPosition, hidden], async () => {
    const sum = (await readPositions()).slice(firstPosition * hidden);
    const type = await readTypes();
    for (let i = 0; i < sum.length; i++) sum[i]! += type[i % hidden]!;
    return sum;
  });
  const zero = graph.int64('positions.zero', [0]);
  const used = graph.node('Slice', 'positions.used', [positions, zero, inputs.sequence]);
  const summed = graph.node('Add', 'embeddings.sum', [word, used]);
  const norm = ['weight', 'bias'].map((part) => {
    const name = `embeddings.LayerNorm.${part}`;
    return graph.weight(name, [hidden], tensor(name, [hidden]));
  });
  return graph.node('LayerNormalization', 'embeddings.normed', [summed, ...norm], { axis: -1, epsilon: normEps });
}
