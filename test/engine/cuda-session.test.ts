/** What a session on CUDA is told, as far as it shows on a machine without CUDA. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import { assertOk, create, type Out, offLoop, type Pointer, runtime } from '../../services/lib/engine/ort-api.ts';
import { openProvider } from '../../services/lib/engine/provider.ts';
import { Graph } from '../../services/lib/model/graph/graph.ts';
import { multiply, storeMatrix } from '../../services/lib/model/graph/linear.ts';
import { writeModel } from '../../services/lib/model/graph/onnx.ts';
import { temporaryFolder } from '../support/models.ts';

/**
 * Opens a graph on the CPU.
 * @param settle is given the session's options before.
 * @returns the graph as the optimiser leaves it.
 */
async function optimised(graph: string, to: string, settle: (options: Pointer) => void): Promise<string> {
  const { api, env } = runtime();
  const options = create(api, api.createSessionOptions);
  try {
    settle(options);
    assertOk(api, api.setOptimizedModelFilePath(options, to));
    const session: Out = [null];
    await offLoop(api, api.createSession, env, graph, options, session);
    api.releaseSession(session[0] as Pointer);
    return await readFile(to, 'latin1');
  } finally {
    api.releaseSessionOptions(options);
  }
}

test('a session on CUDA takes the kernels for many rows, and the optimiser leaves biases apart, which they want', async () => {
  const dir = await temporaryFolder();
  const graph = new Graph();
  const [rows, columns] = [64, 32];
  const input = graph.input('x', 'float32', [1, columns]);
  const read = async () => new Float32Array(rows * columns).fill(1);
  const matrix = storeMatrix(graph, { name: 'm', rows, columns, read }, { bits: 4, block: 32 }, 'multiply');
  const apart = '\x22\x03Add'; // the type of a node as the file has it: its field, its length, its letters
  const bias = graph.weight('m.bias', [rows], async () => new Float32Array(rows).fill(1));
  graph.output(graph.node('Add', 'y', [multiply(graph, 'm', input, matrix), bias]), 'float32', [1, rows]);
  await writeModel(graph, dir);
  const path = join(dir, 'model.onnx');
  expect(await optimised(path, join(dir, 'merged.onnx'), () => {})).not.toContain(apart);
  const entries: unknown[] = [];
  const onCuda = (options: Pointer) => {
    const { api } = runtime();
    const add = api.addSessionConfigEntry;
    vi.spyOn(api, 'addSessionConfigEntry').mockImplementation((...args) => {
      entries.push(args.slice(1));
      return add(...args);
    });
    const provider = openProvider({ provider: 'cuda' });
    try {
      provider.append(options, {});
    } catch {
      // CUDA's library is missing; the settings of the session were made before.
    } finally {
      provider.close();
      vi.restoreAllMocks();
    }
  };
  expect(await optimised(path, join(dir, 'apart.onnx'), onCuda)).toContain(apart);
  expect(entries).toContainEqual(['ep.cuda.fpa_intb_gemm', '1']);
});
