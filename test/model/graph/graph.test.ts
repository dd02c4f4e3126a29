/** Writes graphs, and checks quantised matrices as the runtime reads them. */
import { mkdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Graph } from '../../../services/lib/model/graph/graph.ts';
import { linear, lookUp, multiply, storeMatrix, type TableFormat } from '../../../services/lib/model/graph/linear.ts';
import { writeModel } from '../../../services/lib/model/graph/onnx.ts';
import { blockThatDivides, quantize } from '../../../services/lib/model/graph/quantize.ts';
import { nearestHalf } from '../../../services/lib/numeric/half.ts';
import { ids64, largestDifference, loadGraph, temporaryFolder } from '../../support/models.ts';

const parent = await temporaryFolder();
const folder = async (name: string) => {
  const dir = join(parent, name);
  await mkdir(dir);
  return dir;
};

/** The weights that the runtime computes from levels and scales. */
function dequantize(weight: Float32Array, bits: 4 | 8, block: number): Float32Array {
  const { packed, scales } = quantize(weight, { bits, block });
  return weight.map((_, i) => {
    const level = bits === 8 ? packed[i]! : i & 1 ? packed[i >> 1]! >> 4 : packed[i >> 1]! & 15;
    return (level - 2 ** (bits - 1)) * scales[Math.floor(i / block)]!;
  });
}
const wave = (n: number, step: number) => Float32Array.from({ length: n }, (_, i) => Math.sin(i * step) + 0.1);

describe('quantisation', () => {
  test('every quantised weight is off by at most half a step, or one step at the short end of the range', () => {
    const weights = fc.array(fc.float({ noNaN: true, min: -100, max: 100 }), { minLength: 32, maxLength: 32 });
    fc.assert(
      fc.property(weights, fc.constantFrom<4 | 8>(4, 8), (values, bits) => {
        const weight = Float32Array.from(values);
        const extreme = Math.max(...values.map(Math.abs));
        const step = extreme / 2 ** (bits - 1);
        const restored = dequantize(weight, bits, 32);
        for (const [i, value] of weight.entries()) {
          const atShortEnd = Math.abs(value) > extreme - step;
          expect(Math.abs(restored[i]! - value)).toBeLessThanOrEqual((atShortEnd ? 1 : 0.5) * step * 1.001 + 1e-37);
        }
      }),
    );
  });

  test('scales of a graph in half precision are exact there, and the levels are chosen for them', () => {
    const weights = fc.array(fc.float({ noNaN: true, min: -1, max: 1 }), { minLength: 32, maxLength: 32 });
    fc.assert(
      fc.property(weights, fc.constantFrom<4 | 8>(4, 8), (values, bits) => {
        const weight = Float32Array.from(values, (value) => value / 1000);
        const { packed, scales } = quantize(weight, { bits, block: 32 }, 'float16');
        expect(nearestHalf(scales[0]!)).toBe(scales[0]);
        // A tiny scale rounds by up to 2^-25, by which the largest level is off as well.
        const bound = Math.abs(scales[0]!) * 1.001 + 2 ** (bits - 1) * 2 ** -25;
        for (const [i, value] of weight.entries()) {
          const level = bits === 8 ? packed[i]! : i & 1 ? packed[i >> 1]! >> 4 : packed[i >> 1]! & 15;
          expect(Math.abs((level - 2 ** (bits - 1)) * scales[0]! - value)).toBeLessThanOrEqual(bound);
        }
      }),
    );
  });

  test('a block is the largest one that divides the width, and at least 16', () => {
    expect(blockThatDivides(896, 128)).toBe(128);
    expect(blockThatDivides(96, 128)).toBe(32);
    expect(blockThatDivides(48, 32)).toBe(16);
    expect(blockThatDivides(40, 128)).toBeUndefined();
  });

  test.each<[string, TableFormat, number]>([
    ['fp32', 'fp32', 1e-5],
    ['int8', { bits: 8, block: 32 }, 0.05],
    ['int4', { bits: 4, block: 16 }, 0.1],
    ['a width that no block divides', { bits: 8, block: 128 }, 0.05],
  ])(
    'the runtime multiplies by the weights of %s, and finds the same rows in the table',
    async (name, format, tolerance) => {
      const [rows, columns] = [24, name.startsWith('a width') ? 40 : 64];
      const weight = wave(rows * columns, 0.37);
      const bias = wave(rows, 1.3);
      const graph = new Graph();
      const x = graph.input('x', 'float32', ['n', columns]);
      const ids = graph.input('ids', 'int64', ['batch', 'sequence']);
      const matrix = { name: 'y', rows, columns, read: async () => weight, bias: async () => bias };
      graph.output(linear(graph, x, matrix, format), 'float32', ['n', rows]);
      const table = storeMatrix(graph, { ...matrix, name: 'table' }, format, 'both');
      graph.output(lookUp(graph, 'looked_up', ids, table), 'float32', ['batch', 'sequence', columns]);
      graph.output(multiply(graph, 'tied', x, table), 'float32', ['n', rows]);
      const session = await loadGraph(graph, parent, name);
      const input = wave(3 * columns, 0.11);
      const out = await session.run({
        x: { type: 'float32', dims: [3, columns], data: input },
        ids: ids64([1, 2], [5, 0]),
      });
      const block = format === 'fp32' ? undefined : blockThatDivides(columns, format.block);
      const stored = format === 'fp32' || !block ? weight : dequantize(weight, format.bits, block);
      const product = (withBias: boolean) =>
        Float32Array.from({ length: 3 * rows }, (_, at) => {
          const [n, row] = [Math.floor(at / rows), at % rows];
          let sum = withBias ? bias[row]! : 0;
          for (let i = 0; i < columns; i++) sum += input[n * columns + i]! * stored[row * columns + i]!;
          return sum;
        });
      expect(largestDifference(out.y!.data as Float32Array, product(true))).toBeLessThan(tolerance);
      expect(largestDifference(out.tied!.data as Float32Array, product(false))).toBeLessThan(tolerance);
      const wanted = [5, 0].flatMap((row) => Array.from(stored.subarray(row * columns, (row + 1) * columns)));
      expect(largestDifference(out.looked_up!.data as Float32Array, wanted)).toBeLessThan(1e-6);
      session.dispose();
    },
  );
});

describe('the file', () => {
  const twoWeights = () => {
    const graph = new Graph();
    const x = graph.input('x', 'float32', ['n', 3]);
    const sum = graph.node('Add', 'sum', [x, graph.weight('a', [3], async () => Float32Array.of(1, 2, 3))]);
    graph.output(graph.node('Mul', 'y', [sum, graph.weight('b', [1], async () => Float32Array.of(10))]), 'float32', [
      'n',
      3,
    ]);
    return graph;
  };

  test('weights lie at page boundaries, and the same graph gives the same bytes', async () => {
    const [first, second] = [await folder('first'), await folder('second')];
    const written = await writeModel(twoWeights(), first);
    expect(await writeModel(twoWeights(), second)).toEqual(written);
    expect(written.map(({ name }) => name)).toEqual(['model.onnx', 'model.bin']);
    for (const { name, bytes } of written) {
      expect((await stat(join(first, name))).size).toBe(bytes);
      expect(await readFile(join(first, name))).toEqual(await readFile(join(second, name)));
    }
    const weights = await readFile(join(first, 'model.bin'));
    expect(new Float32Array(weights.buffer.slice(weights.byteOffset, weights.byteOffset + 12))).toEqual(
      Float32Array.of(1, 2, 3),
    );
    expect(weights.length).toBe(4096 + 4);
    expect(weights.readFloatLE(4096)).toBe(10);
  });

  test('the runtime loads the written file', async () => {
    const session = await loadGraph(twoWeights(), parent, 'loaded');
    const { y } = await session.run({ x: { type: 'float32', dims: [1, 3], data: Float32Array.of(0, 1, 2) } });
    expect(y!.data).toEqual(Float32Array.of(10, 30, 50));
    session.dispose();
  });

  test('one weight is in memory at a time, and progress counts bytes', async () => {
    const graph = new Graph();
    const events: string[] = [];
    for (const name of ['a', 'b']) {
      graph.weight(name, [2], async () => {
        events.push(`read ${name}`);
        return new Float32Array(2);
      });
    }
    await writeModel(graph, await folder('progress'), { onProgress: (done, total) => events.push(`${done}/${total}`) });
    expect(events).toEqual(['read a', '8/16', 'read b', '16/16']);
  });

  test('an aborted write stops before the next weight', async () => {
    const graph = new Graph();
    const controller = new AbortController();
    graph.weight('a', [1], async () => {
      controller.abort(new Error('enough'));
      return new Float32Array(1);
    });
    graph.weight('b', [1], () => Promise.reject(new Error('must not be read')));
    const writing = writeModel(graph, await folder('aborted'), { signal: controller.signal });
    await expect(writing).rejects.toThrow('enough');
  });

  test('a weight of another size than declared, or a name given twice, is a bug that is caught', async () => {
    const graph = new Graph();
    graph.weight('a', [2], async () => new Float32Array(3));
    await expect(writeModel(graph, await folder('wrong-size'))).rejects.toThrow('weight a: 12 bytes instead of 8');
    expect(() => graph.scalar('a', 1)).toThrow('two values named a');
  });
});
