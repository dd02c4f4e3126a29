/**
 * ONNX Runtime as the engine uses it: sessions and bindings, on the CPU or on a device. The JS API of onnxruntime-node
 * is not used, because its run() blocks the event loop and copies every fetched output, the whole KV capacity at each
 * step.
 *
 * Bound memory is kept alive here: a {@link Binding} references its values.
 */
import { readFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Graph } from '../model/graph/graph.ts';
import { encodeModel } from '../model/graph/onnx.ts';
import { ServingError } from '../process/errors.ts';
import { CPU, type Device } from './device.ts';
import type { DeviceLane } from './lane.ts';
import {
  type Api,
  assertOk,
  create,
  type Out,
  offLoop,
  type Pointer,
  readBytes,
  readPointers,
  readString,
  runtime,
  type StatusCall,
} from './ort-api.ts';
import { type SessionOptions, SessionSettings } from './ort-settings.ts';
import { type BoundValue, ELEMENT, OrtValue, type Tensor, type TensorData, type TensorType } from './ort-value.ts';
import { prepackedGraph } from './prepacked.ts';

export { OrtValue, type SessionOptions, type Tensor };

/** Stands for the number of a recorded graph where runs are not recorded. */
export const NEVER = -1;

/** Inputs and outputs bound to memory for repeated runs, so that a run on the CPU allocates and copies nothing. */
export class Binding {
  readonly #session: Pointer;
  readonly #lane: DeviceLane;
  /** Whether the session computes on the CPU, which reads the host's memory where it lies. */
  readonly #inPlace: boolean;
  readonly #pointer: Pointer;
  readonly #options: Pointer;
  readonly #values = new Map<string, BoundValue>();
  /** On a device: the inputs in memory of the host, which the runtime copies when they are bound. */
  readonly #copied = new Map<string, BoundValue>();
  /** Names of those that the device keeps from the next run on. */
  readonly #constant = new Set<string>();

  /** @internal */
  constructor(session: Pointer, { kind, lane }: Device) {
    const { api } = runtime();
    this.#session = session;
    this.#lane = lane;
    this.#inPlace = kind === 'cpu';
    this.#pointer = create(api, api.createIoBinding, session);
    this.#options = create(api, api.createRunOptions);
  }

  /**
   * In a session that captures: records the commands of the first run under a number, and replays them in all later
   * runs with the same number. Inputs and outputs must lie on the device, and stay where they are.
   * @param graph the number, from 1 on, or NEVER for runs that are not recorded.
   */
  capture(graph: number): this {
    const { api } = runtime();
    assertOk(api, api.addRunConfigEntry(this.#options, 'gpu_graph_id', String(graph)));
    return this;
  }

  /** Every run reads what the value then holds. */
  input(name: string, value: BoundValue): this {
    if (this.#inPlace || !value.onHost) {
      const { api } = runtime();
      assertOk(api, api.bindInput(this.#pointer, name, value.pointer));
      this.#copied.delete(name);
    } else this.#copied.set(name, value);
    this.#constant.delete(name);
    this.#values.set(name, value);
    return this;
  }

  /** As {@link input}, for a value that changes no more: a device gets it once, instead of before every run. */
  constant(name: string, value: BoundValue): this {
    this.input(name, value);
    if (this.#copied.has(name)) this.#constant.add(name);
    return this;
  }

  output(name: string, value: BoundValue): this {
    const { api } = runtime();
    assertOk(api, api.bindOutput(this.#pointer, name, value.pointer));
    this.#values.set(name, value);
    return this;
  }

  /** Drops the references to disposed values. Other values must be bound in their places before the next run. */
  forgetDisposed(): void {
    for (const bound of [this.#values, this.#copied]) {
      for (const [name, value] of bound) if (!value.alive) bound.delete(name);
    }
  }

  /** Binds an output whose shape is known only after the run; {@link fetch} reads it. */
  outputAnywhere(name: string): this {
    const { api, cpu } = runtime();
    assertOk(api, api.bindOutputToDevice(this.#pointer, name, cpu));
    return this;
  }

  /**
   * Runs the graph on a worker thread, on a device when its turn comes. Only one run at a time is allowed.
   * @param signal cancels the wait for the turn, and the run between two operators.
   * @throws the signal's reason, or ServingError runtime_failed.
   */
  async run(signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    if (this.#inPlace) return this.#runNow(signal);
    await this.#lane.run(() => {
      const { api } = runtime();
      for (const [name, { pointer }] of this.#copied) {
        assertOk(api, api.bindInput(this.#pointer, name, pointer));
        if (this.#constant.delete(name)) this.#copied.delete(name);
      }
      return this.#runNow(signal);
    }, signal);
  }

  async #runNow(signal: AbortSignal | undefined): Promise<void> {
    const { api } = runtime();
    const stop = () => assertOk(api, api.runOptionsSetTerminate(this.#options));
    signal?.addEventListener('abort', stop, { once: true });
    try {
      await offLoop(api, api.runWithBinding, this.#session, this.#options, this.#pointer);
      signal?.throwIfAborted(); // a run may succeed in the moment in which it is cancelled
    } catch (error) {
      signal?.throwIfAborted();
      throw error;
    } finally {
      signal?.removeEventListener('abort', stop);
      if (signal?.aborted) assertOk(api, api.runOptionsUnsetTerminate(this.#options));
    }
  }

  /** Copies of all outputs, in the order they were bound. */
  fetch(): Tensor[] {
    const { api, allocator } = runtime();
    const values: Out = [null];
    const count: [number | bigint] = [0];
    assertOk(api, api.getBoundOutputValues(this.#pointer, allocator, values, count));
    if (Number(count[0]) === 0) return [];
    const pointers = readPointers(values[0] as Pointer, Number(count[0]));
    try {
      return pointers.map((pointer) => copyOut(api, pointer));
    } finally {
      for (const pointer of pointers) api.releaseValue(pointer);
      assertOk(api, api.allocatorFree(allocator, values[0]));
    }
  }

  /** Frees the binding, and with it the device's copies of its inputs. */
  dispose(): void {
    this.#lane.after(() => {
      const { api } = runtime();
      api.releaseIoBinding(this.#pointer);
      api.releaseRunOptions(this.#options);
      this.#values.clear();
      this.#copied.clear();
    });
  }
}

function copyOut(api: Api, value: Pointer): Tensor {
  const info = create(api, api.getTensorTypeAndShape, value);
  try {
    const rank: [number | bigint] = [0];
    const element: [number] = [0];
    assertOk(api, api.getDimensionsCount(info, rank));
    assertOk(api, api.getTensorElementType(info, element));
    const dims = new BigInt64Array(new ArrayBuffer(Number(rank[0]) * 8));
    assertOk(api, api.getDimensions(info, dims, dims.length));
    const type = (Object.keys(ELEMENT) as TensorType[]).find((name) => ELEMENT[name].id === element[0]);
    if (type === undefined) throw new ServingError('runtime_failed', `unknown element type ${element[0]}`);
    const shape = Array.from(dims, Number);
    const data = new ELEMENT[type].array(shape.reduce((a, b) => a * b, 1));
    if (data.length > 0) {
      new Uint8Array(data.buffer).set(readBytes(create(api, api.getTensorMutableData, value), data.byteLength));
    }
    return { type, dims: shape, data };
  } finally {
    api.releaseTensorTypeAndShape(info);
  }
}

/** A loaded graph. ONNX Runtime allows runs in parallel; each {@link Binding} allows one at a time. */
export class OrtSession {
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly #pointer: Pointer;
  readonly #device: Device;
  #runs = 0;
  #disposed = false;

  private constructor(pointer: Pointer, device: Device) {
    this.#pointer = pointer;
    this.#device = device;
    this.inputs = names(pointer, 'input');
    this.outputs = names(pointer, 'output');
  }

  /**
   * Loads `path` and the external data beside it on a worker thread; for the CPU in its prepacked form, if asked for.
   * @throws ServingError runtime_failed for a broken graph, or one that the device cannot compute.
   */
  static async load(path: string, options: SessionOptions): Promise<OrtSession> {
    const { prepacked, device = CPU } = options;
    const graph = prepacked && device.kind === 'cpu' ? await prepackedGraph(path, prepacked) : path;
    return OrtSession.#open(graph, options);
  }

  /**
   * Opens a graph that has no weights without a file.
   * @throws ServingError runtime_failed for a broken graph, or one that the device cannot compute.
   */
  static build(graph: Graph, options: SessionOptions): Promise<OrtSession> {
    return OrtSession.#open(encodeModel(graph), options);
  }

  /**
   * Loads a graph in another structure, on the CPU. Its weights are those of `path`, in their prepacked form if that is
   * asked for: the sessions that read them share one copy.
   * @param rewrite of the ONNX file; it may not change weights.
   * @param mayCopy whether the session may have a copy of the weights where none are prepacked.
   * @throws ServingError runtime_failed for a broken graph, or where there are no prepacked weights to share.
   */
  static async rewritten(
    path: string,
    rewrite: (model: Uint8Array) => Uint8Array,
    options: SessionOptions,
    mayCopy = false,
  ): Promise<OrtSession> {
    const graph = options.prepacked ? await prepackedGraph(path, options.prepacked) : path;
    if (graph === path && !mayCopy) {
      throw new ServingError('runtime_failed', 'a second session would copy the weights: it needs --prepacked');
    }
    return OrtSession.#open(rewrite(await readFile(graph)), options, dirname(graph));
  }

  /** @param weights the folder of the weights of a graph that is given as bytes. */
  static async #open(model: string | Uint8Array, options: SessionOptions, weights?: string): Promise<OrtSession> {
    const { device = CPU } = options;
    return device.lane.run(async () => {
      using settings = new SessionSettings(options);
      if (weights !== undefined) settings.set('session.model_external_initializers_file_folder_path', weights);
      return new OrtSession(await settings.open(model), device);
    });
  }

  /** @throws ServingError draining after {@link dispose}. */
  bind(): Binding {
    this.#assertOpen();
    return new Binding(this.#pointer, this.#device);
  }

  /**
   * Runs once with outputs of any shape; for graphs that do not run for every token.
   * @throws ServingError runtime_failed, draining after {@link dispose}; the signal's reason.
   */
  async run(
    inputs: Readonly<Record<string, Tensor>>,
    outputs: readonly string[] = this.outputs,
    signal?: AbortSignal,
  ): Promise<Record<string, Tensor>> {
    const device = this.#device;
    const run = () => this.#run(inputs, outputs, signal);
    return device.kind === 'cpu' ? run() : device.health.attempt('a run', run);
  }

  async #run(
    inputs: Readonly<Record<string, Tensor>>,
    outputs: readonly string[],
    signal: AbortSignal | undefined,
  ): Promise<Record<string, Tensor>> {
    this.#assertOpen();
    this.#runs++;
    const binding = this.bind();
    const values: OrtValue[] = [];
    try {
      for (const [name, tensor] of Object.entries(inputs)) {
        const value = new OrtValue({ ...tensor, data: offHeap(tensor.data) });
        values.push(value);
        binding.input(name, value);
      }
      for (const name of outputs) binding.outputAnywhere(name);
      await binding.run(signal);
      const fetched = binding.fetch();
      return Object.fromEntries(outputs.map((name, i) => [name, fetched[i] as Tensor]));
    } finally {
      binding.dispose();
      for (const value of values) value.dispose();
      if (--this.#runs === 0 && this.#disposed) this.#release();
    }
  }

  /**
   * Operators of a graph on a device that the CPU computes, and how many of each. Known where the session was opened
   * with `recordsPlacement`; empty on the CPU.
   */
  leftToCpu(): ReadonlyMap<string, number> {
    const counts = new Map<string, number>();
    if (this.#device.kind === 'cpu') return counts;
    const { api } = runtime();
    for (const subgraph of listed(api.getAssignedSubgraphs, this.#pointer)) {
      if (readString(create(api, api.providerOfSubgraph, subgraph)) !== 'CPUExecutionProvider') continue;
      for (const node of listed(api.nodesOfSubgraph, subgraph)) {
        const operator = readString(create(api, api.operatorOfNode, node));
        counts.set(operator, (counts.get(operator) ?? 0) + 1);
      }
    }
    return counts;
  }

  /** Frees the graph after the last {@link run} that still uses it. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    if (this.#runs === 0) this.#release();
  }

  #assertOpen(): void {
    if (this.#disposed) throw new ServingError('draining', 'the engine is shut down');
  }

  #release(): void {
    this.#device.lane.after(() => runtime().api.releaseSession(this.#pointer));
  }
}

/** The same data in memory that V8 does not move. Large arrays lie in such memory already. */
function offHeap(data: TensorData): TensorData {
  if (data.byteLength > 4096) return data;
  const bytes = new Uint8Array(new ArrayBuffer(Math.max(data.byteLength, 8)));
  bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  return new (data.constructor as new (buffer: ArrayBuffer, offset: number, length: number) => TensorData)(
    bytes.buffer,
    0,
    data.length,
  );
}

/** The pointers that a call lists; they belong to its subject. */
function listed(call: StatusCall, subject: Pointer): Pointer[] {
  const { api } = runtime();
  const found: Out = [null];
  const count: [number | bigint] = [0];
  assertOk(api, call(subject, found, count));
  return Number(count[0]) === 0 ? [] : readPointers(found[0] as Pointer, Number(count[0]));
}

function names(session: Pointer, side: 'input' | 'output'): string[] {
  const { api, allocator } = runtime();
  const [countCall, nameCall] =
    side === 'input'
      ? [api.sessionGetInputCount, api.sessionGetInputName]
      : [api.sessionGetOutputCount, api.sessionGetOutputName];
  const count: [number | bigint] = [0];
  assertOk(api, countCall(session, count));
  return Array.from({ length: Number(count[0]) }, (_, i) => {
    const text = create(api, nameCall, session, i, allocator);
    try {
      return readString(text);
    } finally {
      assertOk(api, api.allocatorFree(allocator, text));
    }
  });
}
