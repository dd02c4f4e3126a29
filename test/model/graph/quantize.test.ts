/** The cost of fewer bits: bounds that no sound quantiser comes near, and the effect of large rows on others. */
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { comparePosition } from '../../../services/lib/model/bundle/divergence.ts';
import { PROMPT_FORMATS, weightFormats } from '../../../services/lib/model/bundle/weight-formats.ts';
import { Checkpoint } from '../../../services/lib/model/checkpoint/checkpoint.ts';
import { type DecoderSpec, readSpec } from '../../../services/lib/model/checkpoint/spec.ts';
import { buildDecoder } from '../../../services/lib/model/graph/decoder.ts';
import { Graph } from '../../../services/lib/model/graph/graph.ts';
import {
  type LayerFormats,
  linear,
  type TableFormat,
  type WeightFormat,
} from '../../../services/lib/model/graph/linear.ts';
import { DecoderRun, GOLDENS, loadGraph, readJsonFile, temporaryFolder } from '../../support/models.ts';

describe.each(['qwen2-tied', 'qwen2-untied', 'llama'])('golden %s', async (name) => {
  const dir = join(GOLDENS, name);
  const parent = await temporaryFolder();
  const spec = (await readSpec(dir)) as DecoderSpec;
  const { input_ids: ids } = await readJsonFile<{ input_ids: number[] }>(join(dir, 'expected.json'));

  async function logitsOf(layers: LayerFormats, vocabulary: TableFormat, folder: string): Promise<Float32Array> {
    await using checkpoint = await Checkpoint.open(dir);
    const session = await loadGraph(
      buildDecoder(spec, checkpoint, { layers, vocabulary, maxPositions: 256 }),
      parent,
      folder,
    );
    try {
      return await new DecoderRun(session, spec).step({ ids });
    } finally {
      session.dispose();
    }
  }
  let reference: Float32Array;
  beforeAll(async () => {
    reference = await logitsOf('fp32', 'fp32', 'fp32');
  });

  const of = (precision: 'int8' | 'mixed' | 'int4') => weightFormats(precision, spec.layers, 32);
  test.each<[string, { layers: LayerFormats; vocabulary: TableFormat }, klMean: number, top1: number]>([
    ['int8', of('int8'), 0.006, 0.8],
    ['w8a8', { layers: PROMPT_FORMATS, vocabulary: 'fp32' }, 0.01, 0.75],
    ['mixed', of('mixed'), 0.05, 0.6],
    ['int4', of('int4'), 0.5, 0.2],
  ])('%s diverges from fp32 by no more than its bound', async (format, { layers, vocabulary }, klMean, top1) => {
    const logits = await logitsOf(layers, vocabulary, format);
    let [kl, agreed] = [0, 0];
    for (let at = 0; at < logits.length; at += spec.vocab) {
      const rows = [reference, logits].map((all) => all.subarray(at, at + spec.vocab)) as [Float32Array, Float32Array];
      const found = comparePosition(...rows);
      kl += found.kl / ids.length;
      agreed += found.sameTop ? 1 / ids.length : 0;
    }
    expect(kl).toBeGreaterThan(0);
    expect(kl).toBeLessThan(klMean);
    expect(agreed).toBeGreaterThan(top1);
  });
});

describe('activations of 8 bits', async () => {
  const parent = await temporaryFolder();
  const [rows, columns] = [16, 64];
  const weight = Float32Array.from({ length: rows * columns }, (_, i) => Math.sin(i * 0.7));
  const bias = Float32Array.from({ length: rows }, (_, i) => i - 8);
  /** [3, columns]: ordinary values, the same values times a thousand, and zeros. */
  const input = Float32Array.from({ length: 3 * columns }, (_, i) => {
    const value = Math.cos((i % columns) * 1.3);
    return value * [1, 1000, 0][Math.floor(i / columns)]!;
  });

  async function productOf(format: WeightFormat, withBias: boolean, name: string): Promise<number[]> {
    const graph = new Graph();
    const x = graph.input('x', 'float32', ['batch', 'n', columns]);
    const matrix = { name: 'y', rows, columns, read: async () => weight };
    graph.output(linear(graph, x, withBias ? { ...matrix, bias: async () => bias } : matrix, format), 'float32', [
      'batch',
      'n',
      rows,
    ]);
    const session = await loadGraph(graph, parent, name);
    const { y } = await session.run({ x: { type: 'float32', dims: [1, 3, columns], data: input } });
    const none = await session.run({ x: { type: 'float32', dims: [1, 0, columns], data: new Float32Array(0) } });
    expect(none.y!.dims).toEqual([1, 0, rows]);
    session.dispose();
    return Array.from(y!.data as Float32Array);
  }
  /** Root mean square error of a row relative to the size of the exact row. */
  const errorOf = (exact: number[], found: number[], row: number) => {
    const [want, got] = [exact, found].map((all) => all.slice(row * rows, (row + 1) * rows)) as [number[], number[]];
    return Math.hypot(...want.map((value, i) => value - got[i]!)) / Math.hypot(...want);
  };

  test.each([false, true])(
    'with scales by row, a row is equally exact whatever stands beside it (bias: %s)',
    async (withBias) => {
      const exact = await productOf('fp32', withBias, `exact-${withBias}`);
      const one = await productOf('w8a8', withBias, `run-${withBias}`);
      const byRow = await productOf('w8a8 by row', withBias, `row-${withBias}`);
      expect(errorOf(exact, byRow, 0)).toBeLessThan(0.05);
      expect(errorOf(exact, byRow, 1)).toBeLessThan(0.05);
      expect(byRow.slice(2 * rows)).toEqual(exact.slice(2 * rows));
      expect(errorOf(exact, one, 0)).toBeGreaterThan(0.1);
    },
  );

  test('prompts have scales by row for the matrices without a norm before them', () => {
    const formatOf = PROMPT_FORMATS as Exclude<LayerFormats, WeightFormat>;
    expect((['qkv', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'] as const).map((m) => formatOf(0, m))).toEqual([
      ...['w8a8', 'w8a8 by row', 'w8a8', 'w8a8', 'w8a8 by row'],
    ]);
  });
});
