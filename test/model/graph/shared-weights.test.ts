/** Several graphs over one file of weights. */
import { mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { OrtSession } from '../../../services/lib/engine/ort.ts';
import { Graph } from '../../../services/lib/model/graph/graph.ts';
import { SharedWeights, writeModel } from '../../../services/lib/model/graph/onnx.ts';
import { float32 } from '../../../training/step/tensors.ts';
import { temporaryFolder } from '../../support/models.ts';

const dir = await temporaryFolder();
/** x · a + b, where a is 2, 2 … and b counts from `start`. */
function graphOf(start: number): Graph {
  const graph = new Graph();
  const x = graph.input('x', 'float32', [600]);
  const a = graph.weight(`a of ${start}`, [600], async () => new Float32Array(600).fill(2));
  const b = graph.weight('b', [600], async () => Float32Array.from({ length: 600 }, (_, i) => start + i));
  graph.output(graph.node('Add', 'y', [graph.node('Mul', 'product', [x, a]), b]), 'float32', [600]);
  return graph;
}

test('equal weights of several graphs lie once in their file, which may lose its name when all are open', async () => {
  const path = join(dir, 'weights.bin');
  const shared = await SharedWeights.create(path);
  const sessions: OrtSession[] = [];
  const digests: string[] = [];
  for (const [i, start] of [0, 7, 0].entries()) {
    const folder = join(dir, `graph-${i}`);
    await mkdir(folder);
    const files = await writeModel(graphOf(start), folder, { shared });
    digests.push(files.find(({ name }) => name === 'model.bin')!.sha256);
    sessions.push(await OrtSession.load(join(folder, 'model.onnx'), { threads: 1 }));
  }
  // Each weight begins a page of 4,096 bytes: one of twos, and two that count.
  expect(shared.bytes).toBe(2 * 4096 + 2400);
  expect(digests[0]).toBe(digests[2]);
  expect(digests[0]).not.toBe(digests[1]);
  await shared.close();
  expect(await readdir(dir)).not.toContain('weights.bin');
  for (const [i, start] of [0, 7, 0].entries()) {
    const { y } = await sessions[i]!.run({ x: float32([600], new Float32Array(600).fill(10)) });
    expect([y!.data[0], y!.data[599]]).toEqual([20 + start, 20 + start + 599]);
    sessions[i]!.dispose();
  }
});
