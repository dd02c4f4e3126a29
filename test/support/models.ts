/** Helpers of the model tests: goldens, temporary folders, and a decoder graph that runs with its KV kept in place. */
import { mkdir, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll } from 'vitest';
import { OrtSession, OrtValue, type Tensor } from '../../services/lib/engine/ort.ts';
import { Checkpoint, type TensorSource } from '../../services/lib/model/checkpoint/checkpoint.ts';
import { SafetensorsFile } from '../../services/lib/model/checkpoint/safetensors.ts';
import { type DecoderSpec, readSpec } from '../../services/lib/model/checkpoint/spec.ts';
import { buildDecoder } from '../../services/lib/model/graph/decoder.ts';
import type { Graph } from '../../services/lib/model/graph/graph.ts';
import type { TableFormat } from '../../services/lib/model/graph/linear.ts';
import { writeModel } from '../../services/lib/model/graph/onnx.ts';

export const GOLDENS = join(import.meta.dirname, '../goldens');
export const TINY_CODER = join(import.meta.dirname, '../../models/tiny-coder');

/** A folder that is removed when the tests around the call are done. It must be called while they are collected. */
export async function temporaryFolder(): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-model-'));
  afterAll(() => rm(dir, { recursive: true, force: true }));
  return dir;
}

export interface Expected {
  float32(name: string): Float32Array;
  int64(name: string): number[];
}

/** Reads all tensors of a reference file. */
export async function readExpected(path: string): Promise<Expected> {
  const file = await SafetensorsFile.open(path);
  const bytes = new Map<string, Uint8Array>();
  try {
    for (const name of file.tensors.keys()) bytes.set(name, await file.bytes(name));
  } finally {
    await file.close();
  }
  return {
    float32: (name) => new Float32Array(bytes.get(name)!.buffer),
    int64: (name) => Array.from(new BigInt64Array(bytes.get(name)!.buffer), Number),
  };
}

export async function readJsonFile<T>(path: string): Promise<T> {
  return JSON.parse(await readFile(path, 'utf8')) as T;
}

export function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) throw new Error(`${a.length} values against ${b.length}`);
  let largest = 0;
  for (let i = 0; i < a.length; i++) {
    const difference = Math.abs(a[i]! - b[i]!);
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

function argmax(values: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i]! > values[best]!) best = i;
  return best;
}

export const ids64 = (dims: number[], ids: readonly number[]): Tensor => ({
  type: 'int64',
  dims,
  data: BigInt64Array.from(ids, BigInt),
});

/** Positions of one sequence of a batch, as the decoder graph takes them: [positions, 2]. */
export const places = (row: number, positions: readonly number[]): Tensor =>
  ids64(
    [positions.length, 2],
    positions.flatMap((position) => [row, position]),
  );

/** Writes a graph into a folder of its own and loads it. */
export async function loadGraph(graph: Graph, parent: string, name: string): Promise<OrtSession> {
  const dir = join(parent, name);
  await mkdir(dir);
  await writeModel(graph, dir);
  return OrtSession.load(join(dir, 'model.onnx'), { threads: 1 });
}

export interface Step {
  readonly ids: readonly number[];
  /** Positions relative to this step, and vectors [positions, hidden]. */
  readonly soft?: { readonly positions: readonly number[]; readonly vectors: Float32Array };
  /** Positions of this step whose logits are wanted; all positions if absent. */
  readonly rows?: readonly number[];
}

/** One sequence on a decoder graph, with past and present in the same memory. */
export class DecoderRun {
  readonly spec: DecoderSpec;
  readonly capacity: number;
  /** Per layer, key then value: [1, kvHeads, capacity, headDim], in the graph's type. */
  readonly cache: (Float32Array | Uint16Array)[];
  readonly #session: OrtSession;
  length = 0;

  constructor(session: OrtSession, spec: DecoderSpec, capacity = 128, floats: 'float32' | 'float16' = 'float32') {
    this.#session = session;
    this.spec = spec;
    this.capacity = capacity;
    const size = spec.kvHeads * capacity * spec.headDim;
    this.cache = Array.from({ length: 2 * spec.layers }, () =>
      floats === 'float32' ? new Float32Array(new ArrayBuffer(4 * size)) : new Uint16Array(new ArrayBuffer(2 * size)),
    );
  }

  reset(): void {
    this.length = 0;
  }

  /** @returns [rows, vocab] */
  async step({ ids, soft, rows = ids.map((_, i) => i) }: Step): Promise<Float32Array> {
    const { hidden, kvHeads, headDim } = this.spec;
    const total = this.length + ids.length;
    const count = soft?.positions.length ?? 0;
    const values: OrtValue[] = [];
    const binding = this.#session.bind();
    const feed = (name: string, tensor: Tensor) => {
      const bytes = new ArrayBuffer(Math.max(8, tensor.data.byteLength));
      const data = new (tensor.data.constructor as Float32ArrayConstructor)(bytes, 0, tensor.data.length);
      (data as { set(values: unknown): void }).set(tensor.data);
      const value = new OrtValue({ ...tensor, data });
      values.push(value);
      binding.input(name, value);
    };
    feed('input_ids', ids64([1, ids.length], ids));
    feed('soft_tokens', { type: 'float32', dims: [count, hidden], data: soft?.vectors ?? new Float32Array(0) });
    feed('soft_positions', places(0, soft?.positions ?? []));
    feed('logit_rows', ids64([rows.length], rows));
    feed('seqlens_k', { type: 'int32', dims: [1], data: Int32Array.of(total - 1) });
    feed('total_sequence_length', { type: 'int32', dims: [], data: Int32Array.of(total) });
    for (const [i, data] of this.cache.entries()) {
      const type = data instanceof Float32Array ? 'float32' : 'float16';
      const value = new OrtValue({ type, dims: [1, kvHeads, this.capacity, headDim], data });
      values.push(value);
      const name = `${i >> 1}.${i & 1 ? 'value' : 'key'}`;
      binding.input(`past.${name}`, value).output(`present.${name}`, value);
    }
    const { vocab } = this.spec;
    const logits = new Float32Array(new ArrayBuffer(Math.max(8, 4 * rows.length * vocab)), 0, rows.length * vocab);
    const logitsValue = new OrtValue({ type: 'float32', dims: [rows.length, vocab], data: logits });
    values.push(logitsValue);
    binding.output('logits', logitsValue);
    try {
      await binding.run();
      this.length = total;
      return logits;
    } finally {
      binding.dispose();
      for (const value of values) value.dispose();
    }
  }

  /** Greedy continuation of `count` tokens after a first step. */
  async greedy(first: Step, count: number): Promise<number[]> {
    const out = [argmax(await this.step({ ...first, rows: [first.ids.length - 1] }))];
    while (out.length < count) out.push(argmax(await this.step({ ids: [out.at(-1)!] })));
    return out;
  }
}

/** Loads the decoder graph of a Hugging Face folder. */
export async function loadDecoder(
  dir: string,
  parent: string,
  name: string,
  format: TableFormat = 'fp32',
): Promise<{ session: OrtSession; spec: DecoderSpec }> {
  const spec = (await readSpec(dir)) as DecoderSpec;
  await using checkpoint = await Checkpoint.open(dir);
  const graph = buildDecoder(spec, checkpoint, { layers: format, vocabulary: format, maxPositions: 256 });
  return { session: await loadGraph(graph, parent, name), spec };
}

/** Tensors of the given shapes, all zero. */
export const inMemory = (shapes: Readonly<Record<string, readonly number[]>>): TensorSource => ({
  origin: 'in-memory',
  shapeOf: (name) => shapes[name],
  read: async (name) => new Float32Array(shapes[name]!.reduce((product, dim) => product * dim, 1)),
});

/** The bytes of a safetensors file with this header, valid or not. */
export function safetensorsBytes(header: unknown, dataBytes: number): Uint8Array {
  const json = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const bytes = new Uint8Array(8 + json.length + dataBytes);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(json.length), true);
  bytes.set(json, 8);
  return bytes;
}
