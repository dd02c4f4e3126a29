/**
 * ONNX Runtime as the engine uses it: sessions, bindings, and tensors over typed arrays. The JS API of onnxruntime-node
 * is not used, because its run() blocks the event loop and copies every fetched output, the whole KV capacity at each
 * step.
 *
 * Bound memory is kept alive here: an {@link OrtValue} references its typed array, a {@link Binding} its values.
 */
import { ServingError } from '../process/errors.ts';
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
} from './ort-api.ts';
import { type SessionOptions, SessionSettings } from './ort-settings.ts';
import { prepackedGraph } from './prepacked.ts';

export type { SessionOptions };

const ELEMENT = {
  float32: { id: 1, array: Float32Array },
  uint8: { id: 2, array: Uint8Array },
  int8: { id: 3, array: Int8Array },
  int32: { id: 6, array: Int32Array },
  int64: { id: 7, array: BigInt64Array },
  float16: { id: 10, array: Uint16Array },
} as const;
type TensorType = keyof typeof ELEMENT;
type TensorData = Float32Array | Uint8Array | Int8Array | Int32Array | BigInt64Array | Uint16Array;

/** Row-major elements; float16 as its bits in a Uint16Array. */
export interface Tensor {
  readonly type: TensorType;
  readonly dims: readonly number[];
  readonly data: TensorData;
}

/** A tensor whose memory the runtime reads or writes in place. */
export class OrtValue {
  /** @internal */ readonly pointer: Pointer;
  readonly tensor: Tensor;
  #alive = true;

  /**
   * @param tensor small data must lie in an explicit ArrayBuffer (`new Float32Array(new ArrayBuffer(n))`), because V8
   *   moves small typed arrays.
   */
  constructor(tensor: Tensor) {
    const { api, cpu } = runtime();
    const count = tensor.dims.reduce((a, b) => a * b, 1);
    if (count > tensor.data.length || !(tensor.data instanceof ELEMENT[tensor.type].array)) {
      throw new ServingError(
        'runtime_failed',
        `a ${tensor.type} tensor [${tensor.dims}] does not fit ${tensor.data.length} ${tensor.data.constructor.name} elements`,
      );
    }
    const dims = BigInt64Array.from(tensor.dims.map(BigInt));
    const bytes = count * tensor.data.BYTES_PER_ELEMENT;
    const { id } = ELEMENT[tensor.type];
    this.tensor = tensor;
    this.pointer = create(api, api.createTensorWithData, cpu, tensor.data, bytes, dims, dims.length, id);
  }

  get alive(): boolean {
    return this.#alive;
  }

  dispose(): void {
    if (this.#alive) runtime().api.releaseValue(this.pointer);
    this.#alive = false;
  }
}

/** Inputs and outputs bound to memory for repeated runs, so that a run allocates and copies nothing. */
export class Binding {
  readonly #session: Pointer;
  readonly #pointer: Pointer;
  readonly #options: Pointer;
  readonly #values = new Map<string, OrtValue>();

  /** @internal */
  constructor(session: Pointer) {
    const { api } = runtime();
    this.#session = session;
    this.#pointer = create(api, api.createIoBinding, session);
    this.#options = create(api, api.createRunOptions);
  }

  input(name: string, value: OrtValue): this {
    const { api } = runtime();
    assertOk(api, api.bindInput(this.#pointer, name, value.pointer));
    this.#values.set(name, value);
    return this;
  }

  output(name: string, value: OrtValue): this {
    const { api } = runtime();
    assertOk(api, api.bindOutput(this.#pointer, name, value.pointer));
    this.#values.set(name, value);
    return this;
  }

  /** Drops the references to disposed values. Other values must be bound in their places before the next run. */
  forgetDisposed(): void {
    for (const [name, value] of this.#values) if (!value.alive) this.#values.delete(name);
  }

  /** Binds an output whose shape is known only after the run; {@link fetch} reads it. */
  outputAnywhere(name: string): this {
    const { api, cpu } = runtime();
    assertOk(api, api.bindOutputToDevice(this.#pointer, name, cpu));
    return this;
  }

  /**
   * Runs the graph on a worker thread. Only one run at a time is allowed.
   * @param signal cancels the run between two operators.
   * @throws the signal's reason, or ServingError runtime_failed.
   */
  async run(signal?: AbortSignal): Promise<void> {
    const { api } = runtime();
    signal?.throwIfAborted();
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

  dispose(): void {
    const { api } = runtime();
    api.releaseIoBinding(this.#pointer);
    api.releaseRunOptions(this.#options);
    this.#values.clear();
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
  #runs = 0;
  #disposed = false;

  private constructor(pointer: Pointer) {
    this.#pointer = pointer;
    this.inputs = names(pointer, 'input');
    this.outputs = names(pointer, 'output');
  }

  /**
   * Loads `path` and the external data beside it on a worker thread; for the CPU in its prepacked form, if asked for.
   * @throws ServingError runtime_failed for a broken graph; provider_unavailable for a device that this version cannot
   *   compute on.
   */
  static async load(path: string, options: SessionOptions): Promise<OrtSession> {
    using settings = new SessionSettings(options);
    const { prepacked } = options;
    const graph = prepacked ? await prepackedGraph(path, prepacked) : path;
    return new OrtSession(await settings.open(graph));
  }

  bind(): Binding {
    return new Binding(this.#pointer);
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
    if (this.#disposed) throw new ServingError('draining', 'the engine is shut down');
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

  /** Frees the graph after the last {@link run} that still uses it. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    if (this.#runs === 0) this.#release();
  }

  #release(): void {
    runtime().api.releaseSession(this.#pointer);
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
