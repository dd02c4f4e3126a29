/** Opens a graph that is made for training alone, and so belongs to no bundle. */
import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { OrtSession } from '../../services/lib/engine/ort.ts';
import type { Graph } from '../../services/lib/model/graph/graph.ts';
import { writeModel } from '../../services/lib/model/graph/onnx.ts';

export interface SessionPlace {
  /** Folder in which the graph is written; it needs room for the graph's weights until the session is disposed of. */
  readonly folder: string;
  readonly threads: number;
  /** See SessionOptions. */
  readonly packWeights?: boolean;
}

/**
 * Writes the graph, and loads it. The files have no name any more when this returns, so that no end of the process
 * leaves them behind; their space is given back when the session is disposed of.
 * @throws ServingError runtime_failed; the signal's reason; what reading a weight or writing to the folder throws.
 */
export async function openGraph(graph: Graph, place: SessionPlace, signal?: AbortSignal): Promise<OrtSession> {
  const { folder, threads, packWeights } = place;
  const dir = await mkdtemp(join(folder, 'graph-'));
  try {
    await writeModel(graph, dir, { signal });
    return await OrtSession.load(join(dir, 'model.onnx'), { provider: 'cpu', threads, packWeights });
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}
