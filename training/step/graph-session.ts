/** Opens graphs that are made for training alone, and so belong to no bundle. */
import { createHash } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Device } from '../../services/lib/engine/device.ts';
import { OrtSession } from '../../services/lib/engine/ort.ts';
import type { Graph } from '../../services/lib/model/graph/graph.ts';
import { type SharedWeights, writeModel } from '../../services/lib/model/graph/onnx.ts';
import { type GraphRunner, GraphWorkers } from './graph-workers.ts';

export interface SessionPlace {
  /** Folder in which the graph is written; it needs room for the graph's weights until the session is disposed of. */
  readonly folder: string;
  /** The file in the folder that has the weights of several graphs; each has its own file without it. */
  readonly shared?: SharedWeights;
  readonly threads: number;
  /** See SessionOptions. */
  readonly packWeights?: boolean;
  /** Where graphs of training compute; the CPU if not given. */
  readonly device?: Device;
  /** Processes that make passes through the language model, each with its share of the threads; 1 if not given. */
  readonly workers?: number;
}

/**
 * Writes the graph, and loads it with `load`, which gets the path of its `model.onnx`. The files have no name any more
 * when this returns (of shared weights, this name of theirs), so that no end of the process leaves them behind; their
 * space is given back when what was loaded is disposed of.
 * @returns what `load` returned, and a SHA-256 of the graph and its weights, in hex
 * @throws ServingError runtime_failed; the signal's reason; what reading a weight or writing to the folder throws.
 */
export async function withGraph<T>(
  graph: Graph,
  { folder, shared }: Pick<SessionPlace, 'folder' | 'shared'>,
  load: (path: string) => Promise<T>,
  signal?: AbortSignal,
): Promise<{ loaded: T; digest: string }> {
  const dir = await mkdtemp(join(folder, 'graph-'));
  try {
    const files = await writeModel(graph, dir, { signal, shared });
    const digest = createHash('sha256')
      .update(files.map(({ sha256 }) => sha256).join(' '))
      .digest('hex');
    return { loaded: await load(join(dir, 'model.onnx')), digest };
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

/** A session of the graph, as {@link withGraph} opens it. */
export async function openGraph(
  graph: Graph,
  place: SessionPlace,
  signal?: AbortSignal,
): Promise<{ session: OrtSession; digest: string }> {
  const { threads, packWeights, device } = place;
  const load = (path: string) => OrtSession.load(path, { threads, packWeights, device, recordsPlacement: true });
  const { loaded, digest } = await withGraph(graph, place, load, signal);
  return { session: loaded, digest };
}

/**
 * What runs the graph for several samples at a time, where the place has several workers; one session otherwise.
 * @throws as {@link openGraph}; ServingError worker_lost.
 */
export async function openRunner(
  graph: Graph,
  place: SessionPlace,
  signal?: AbortSignal,
): Promise<{ runner: GraphRunner; digest: string; leftToCpu: ReadonlyMap<string, number> }> {
  const { workers = 1, threads, packWeights } = place;
  if (workers === 1) {
    const { session, digest } = await openGraph(graph, place, signal);
    return { runner: Object.assign(session, { parallel: 1 }), digest, leftToCpu: session.leftToCpu() };
  }
  const options = { threads: Math.floor(threads / workers), packWeights };
  const load = (path: string) => GraphWorkers.open(path, workers, options, signal);
  const { loaded, digest } = await withGraph(graph, place, load, signal);
  return { runner: loaded, digest, leftToCpu: new Map() };
}
