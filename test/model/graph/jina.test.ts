/**
 * JinaBERT. There is no golden for it: the graph is compared with a plain forward pass written here, loop by loop, on
 * small random checkpoints of both published forms.
 */
import { describe, expect, test } from 'vitest';
import type { TensorSource } from '../../../services/lib/model/checkpoint/checkpoint.ts';
import { type JinaSpec, maxInputTokens, parseSpec } from '../../../services/lib/model/checkpoint/spec.ts';
import { buildEncoder } from '../../../services/lib/model/graph/encoder.ts';
import { JINA_CONFIG, type JinaForm, jinaTensors } from '../../support/jina.ts';
import { ids64, largestDifference, loadGraph, temporaryFolder } from '../../support/models.ts';
import type { NamedTensors } from '../../support/tensors.ts';

const SPEC = parseSpec('config.json', JINA_CONFIG) as JinaSpec;
const checkpoint = (form: JinaForm, prefix: string) => jinaTensors(SPEC, form, prefix);

const sourceOf = (tensors: NamedTensors): TensorSource => ({
  origin: 'in-memory',
  shapeOf: (name) => tensors.get(name)?.shape,
  read: async (name) => tensors.get(name)!.data,
});

/** The error function by its Taylor series. */
function erf(x: number): number {
  let term = x;
  let sum = x;
  for (let n = 1; Math.abs(term) > 1e-12; n++) {
    term *= (-x * x) / n;
    sum += term / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * sum;
}
const gelu = (x: number) => 0.5 * x * (1 + erf(x / Math.SQRT2));

/** The mean of the hidden states of one sequence, as the published code computes them, in 64-bit floats. */
function forward(form: JinaForm, tensors: NamedTensors, prefix: string, ids: readonly number[]): number[] {
  const { hidden, intermediate, heads, layers, normEps } = SPEC;
  const get = (name: string) => tensors.get(prefix + name)!.data;
  const norm = (name: string, x: number[]) => {
    const mean = x.reduce((sum, v) => sum + v, 0) / x.length;
    const variance = x.reduce((sum, v) => sum + (v - mean) ** 2, 0) / x.length;
    const [weight, bias] = [get(`${name}.weight`), get(`${name}.bias`)];
    return x.map((v, i) => ((v - mean) / Math.sqrt(variance + normEps)) * weight[i]! + bias[i]!);
  };
  const linear = (name: string, x: number[], rows: number, biased = true) => {
    const weight = get(`${name}.weight`);
    return Array.from({ length: rows }, (_, r) =>
      x.reduce((sum, v, c) => sum + v * weight[r * x.length + c]!, biased ? get(`${name}.bias`)[r]! : 0),
    );
  };
  const add = (a: number[], b: number[]) => a.map((v, i) => v + b[i]!);
  const [words, types] = [get('embeddings.word_embeddings.weight'), get('embeddings.token_type_embeddings.weight')];
  let rows = ids.map((id) =>
    norm(
      'embeddings.LayerNorm',
      Array.from({ length: hidden }, (_, i) => words[id * hidden + i]! + types[i]!),
    ),
  );
  const size = hidden / heads;
  // 6 heads have the 4 slopes for 4 heads, then every other slope for 8 heads.
  const slopes = [2 ** -2, 2 ** -4, 2 ** -6, 2 ** -8, 2 ** -1, 2 ** -3];
  for (let i = 0; i < layers; i++) {
    const layer = `encoder.layer.${i}`;
    const project = (part: string) => rows.map((row) => linear(`${layer}.attention.self.${part}`, row, hidden));
    const normed = (part: 'q' | 'k', x: number[][]) =>
      form === 'code' ? x.map((row) => norm(`${layer}.attention.self.layer_norm_${part}`, row)) : x;
    const [q, k, v] = [normed('q', project('query')), normed('k', project('key')), project('value')];
    const mixed = rows.map((_, a) =>
      Array.from({ length: hidden }, (_, column) => {
        const head = Math.floor(column / size);
        const scores = rows.map((_, b) => {
          let dot = 0;
          for (let c = head * size; c < (head + 1) * size; c++) dot += q[a]![c]! * k[b]![c]!;
          return Math.exp(dot / Math.sqrt(size) - slopes[head]! * Math.abs(a - b));
        });
        const total = scores.reduce((sum, s) => sum + s, 0);
        return scores.reduce((sum, s, b) => sum + (s / total) * v[b]![column]!, 0);
      }),
    );
    rows = rows.map((row, a) => {
      const dense = linear(`${layer}.attention.output.dense`, mixed[a]!, hidden);
      const attended = norm(`${layer}.attention.output.LayerNorm`, add(dense, row));
      if (form === 'code') {
        const x = norm(`${layer}.layer_norm_1`, add(attended, row));
        const both = linear(`${layer}.mlp.up_gated_layer`, x, 2 * intermediate, false);
        const gated = both.slice(0, intermediate).map((up, j) => up * gelu(both[intermediate + j]!));
        return norm(`${layer}.layer_norm_2`, add(linear(`${layer}.mlp.down_layer`, gated, hidden), x));
      }
      const both = linear(`${layer}.mlp.gated_layers`, attended, 2 * intermediate, false);
      const gated = both.slice(0, intermediate).map((gate, j) => gelu(gate) * both[intermediate + j]!);
      return norm(`${layer}.mlp.layernorm`, add(linear(`${layer}.mlp.wo`, gated, hidden), attended));
    });
  }
  return Array.from({ length: hidden }, (_, i) => rows.reduce((sum, row) => sum + row[i]!, 0) / rows.length);
}

const parent = await temporaryFolder();

describe.each([
  ['code', ''],
  ['code', 'bert.'],
  ['en', ''],
] as const)('the form of base-%s, names after "%s"', (form, prefix) => {
  test('a padded batch gives the embeddings of the plain forward pass', async () => {
    const tensors = checkpoint(form, prefix);
    const graph = buildEncoder(SPEC, sourceOf(tensors), {
      weights: 'fp32',
      pooling: 'mean',
      normalize: false,
      maxTokens: 64,
    });
    const session = await loadGraph(graph, parent, `${form}${prefix}`);
    const rows = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18], [49, 3, 3], [20], [7, 8, 9, 30, 31]];
    for (const batch of [rows, ...rows.map((row) => [row])]) {
      const longest = Math.max(...batch.map((row) => row.length));
      const padded = batch.flatMap((row) => [...row, ...new Array<number>(longest - row.length).fill(0)]);
      const { embeddings } = await session.run({
        input_ids: ids64([batch.length, longest], padded),
        lengths: { type: 'int32', dims: [batch.length], data: Int32Array.from(batch, (row) => row.length) },
      });
      const want = Float32Array.from(batch.flatMap((ids) => forward(form, tensors, prefix, ids)));
      expect(largestDifference(embeddings!.data as Float32Array, want)).toBeLessThanOrEqual(1e-4);
    }
    session.dispose();
  });
});

/** The slopes in the graph of an encoder with so many heads. */
async function slopesOf(heads: number): Promise<number[]> {
  const source = sourceOf(checkpoint('code', ''));
  const format = { weights: 'fp32', pooling: 'mean', normalize: false, maxTokens: 64 } as const;
  const { weights } = buildEncoder({ ...SPEC, heads }, source, format);
  const slopes = weights.find(({ parts }) => parts[0]?.name === 'alibi.slopes');
  const [negative] = await slopes!.produce();
  return Array.from(negative as Float32Array, (value) => -value);
}

test('the slopes are those of the ALiBi paper', async () => {
  const eight = await slopesOf(8);
  expect(eight).toEqual([1, 2, 3, 4, 5, 6, 7, 8].map((i) => 2 ** -i));
  const twelve = await slopesOf(12);
  expect(twelve.slice(0, 8)).toEqual(eight);
  expect(twelve.slice(8)).toEqual([0.5, 1.5, 2.5, 3.5].map((i) => Math.fround(2 ** -i)));
});

test('the config.json of JinaBERT is read', () => {
  expect(SPEC).toMatchObject({ architecture: 'jina', hidden: 48, heads: 6, maxPositions: 64, normEps: 1e-12 });
  expect(maxInputTokens(SPEC)).toBe(64);
});

test.each([
  ['relative positions', { position_embedding_type: 'relative_key' }, 'position_embedding_type'],
  ["BERT with another MLP than BERT's", { position_embedding_type: 'absolute' }, 'feed_forward_type'],
  ['another MLP', { feed_forward_type: 'original' }, 'feed_forward_type'],
  ['another activation', { hidden_act: 'relu' }, 'hidden_act'],
  ['heads that do not fit', { num_attention_heads: 5 }, '5 heads'],
])('%s is refused', (_, change, message) => {
  expect(() => parseSpec('config.json', { ...JINA_CONFIG, ...change })).toThrow(
    expect.objectContaining({ code: 'checkpoint_invalid', message: expect.stringContaining(message) }),
  );
});
