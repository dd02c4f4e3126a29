/**
 * What the engine computes on: the CPU, or an accelerator with a lane and memory of its own. A process opens each
 * device once, whoever asks for it; provider.ts knows how each kind is found.
 */
import { Graph } from '../model/graph/graph.ts';
import { encodeModel } from '../model/graph/onnx.ts';
import { DeviceHealth } from './device-health.ts';
import { type DeviceLane, FifoLane, NO_LANE } from './lane.ts';
import { assertOk, create, type Out, offLoop, type Pointer, runtime, viewBytes } from './ort-api.ts';
import { endAlthoughHung } from './ort-exit.ts';
import { type BoundValue, ELEMENT, elements, OrtValue, type TensorType, wrap } from './ort-value.ts';
import {
  type DeviceSessionOptions,
  openProvider,
  type Provider,
  type ProviderSetting,
  unavailable,
} from './provider.ts';

export type DeviceKind = 'cpu' | ProviderSetting['provider'];
/** Which device to open. */
export type DeviceSetting = { readonly provider: 'cpu' } | ProviderSetting;

export interface Cpu {
  readonly kind: 'cpu';
  readonly name: string;
  readonly lane: DeviceLane;
  append(options: Pointer, wishes: DeviceSessionOptions): void;
  dispose(): Promise<void>;
}

export type Device = Cpu | Accelerator;

export const CPU: Cpu = { kind: 'cpu', name: 'CPU', lane: NO_LANE, append: () => {}, dispose: async () => {} };

/** A tensor in memory of a device. */
export class DeviceTensor implements BoundValue {
  /** @internal */ readonly pointer: Pointer;
  readonly type: TensorType;
  readonly dims: readonly number[];
  readonly bytes: number;
  readonly onHost = false;
  #alive = true;
  readonly #device: Accelerator;
  /** The tensor that owns the memory, if this one lies over the start of another. */
  readonly #owner: DeviceTensor | undefined;

  /** @internal */
  constructor(device: Accelerator, pointer: Pointer, type: TensorType, dims: readonly number[], owner?: DeviceTensor) {
    this.#device = device;
    this.pointer = pointer;
    this.type = type;
    this.dims = dims;
    this.bytes = elements(dims) * ELEMENT[type].array.BYTES_PER_ELEMENT;
    this.#owner = owner;
  }

  get alive(): boolean {
    return this.#alive;
  }

  /**
   * A smaller tensor over the start of the same memory. There is no way to one that starts elsewhere: the address of a
   * device tensor is a handle, and WebGPU aborts the process when it is given a sum.
   * @throws RangeError for one that is not smaller.
   */
  head(dims: readonly number[]): DeviceTensor {
    if (elements(dims) > elements(this.dims)) throw new RangeError(`[${dims}] is larger than [${this.dims}]`);
    return new DeviceTensor(this.#device, this.#device.wrapHead(this, dims), this.type, dims, this);
  }

  /** Frees the memory after the runs and copies that were asked for before. */
  dispose(): void {
    if (!this.#alive) return;
    this.#alive = false;
    this.#device.free(this, this.#owner === undefined);
  }
}

/** A device with memory of its own. */
export class Accelerator {
  readonly kind: ProviderSetting['provider'];
  /** The provider and the device, for logs and errors. */
  readonly name: string;
  /** Whose kernels compute here: `kind`, or for a plugin that of its provider, if it is known. */
  readonly kernels: ProviderSetting['provider'];
  readonly lane: DeviceLane;
  /** Told by sessions and stores how their work here ends. */
  readonly health: DeviceHealth;
  readonly #provider: Provider;
  /** A session on the device that lives as long as it: allocators belong to sessions. */
  readonly #session: Pointer;
  readonly #memory: Pointer;
  readonly #allocator: Pointer;
  /** Allocates page-locked memory of the host, from which copies are fast; undefined where the provider has none. */
  readonly #pinned: Pointer | undefined;
  /** Called by each holder when it is done; says whether it was the last one. */
  readonly #leave: () => boolean;
  #bytes = 0;

  private constructor(
    kind: ProviderSetting['provider'],
    provider: Provider,
    session: Pointer,
    lane: FifoLane,
    leave: () => boolean,
  ) {
    const { api } = runtime();
    this.kind = kind;
    this.name = provider.name;
    this.kernels = provider.kernels;
    this.lane = lane;
    this.health = new DeviceHealth(provider.name);
    lane.onHung = (afterMs) => this.health.hung(afterMs);
    this.#provider = provider;
    this.#session = session;
    this.#leave = leave;
    this.#memory = memoryOf(session);
    this.#allocator = create(api, api.createAllocator, session, this.#memory);
    try {
      this.#pinned = provider.pinnedMemory && create(api, api.createAllocator, session, provider.pinnedMemory);
    } catch (error) {
      api.releaseAllocator(this.#allocator);
      throw error;
    }
  }

  /** @internal See {@link openDevice}. */
  static open(setting: ProviderSetting, lane: FifoLane, leave: () => boolean): Promise<Accelerator> {
    return lane.run(async () => {
      const provider = openProvider(setting);
      let session: Pointer | undefined;
      try {
        session = await openProbe(provider);
        return new Accelerator(setting.provider, provider, session, lane, leave);
      } catch (error) {
        if (session !== undefined) runtime().api.releaseSession(session);
        provider.close();
        throw unavailable(provider, error);
      }
    });
  }

  /** Bytes of the tensors that were made here and are not disposed of. The runtime does not count them. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Makes a session compute here. */
  append(options: Pointer, wishes: DeviceSessionOptions): void {
    this.#provider.append(options, wishes);
  }

  /**
   * A tensor in the device's memory, with any content. WebGPU reports no error when the memory is used up: what is
   * written is lost. Write a pattern and read it back before relying on it.
   * @throws ServingError runtime_failed where the provider does report it.
   */
  tensor(type: TensorType, dims: readonly number[]): Promise<DeviceTensor> {
    return this.lane.run(() => {
      const { api } = runtime();
      const shape = BigInt64Array.from(dims.map(BigInt));
      const pointer = create(api, api.createTensor, this.#allocator, shape, dims.length, ELEMENT[type].id);
      const made = new DeviceTensor(this, pointer, type, dims);
      this.#bytes += made.bytes;
      return made;
    });
  }

  /** A tensor of the host from and to which this device copies fast: page-locked memory where there is any. */
  hostTensor(type: TensorType, dims: readonly number[]): OrtValue {
    const { array } = ELEMENT[type];
    const count = elements(dims);
    if (this.#pinned === undefined || count === 0) {
      const data = new array(new ArrayBuffer(Math.max(8, count * array.BYTES_PER_ELEMENT)), 0, count);
      return new OrtValue({ type, dims, data });
    }
    const { api } = runtime();
    const shape = BigInt64Array.from(dims.map(BigInt));
    const pointer = create(api, api.createTensor, this.#pinned, shape, dims.length, ELEMENT[type].id);
    const address = create(api, api.getTensorMutableData, pointer);
    const data = new array(viewBytes(address, count * array.BYTES_PER_ELEMENT), 0, count);
    return new OrtValue({ type, dims, data }, pointer);
  }

  /**
   * Copies whole tensors, each onto the one with the same index, of the same type and size: from the host to the
   * device, back, or within the device. The runtime takes the transfer from those of its environment. WebGPU registers
   * its own there; whether CUDA does, when it is appended to sessions as here, nobody has tried: only what is recorded
   * (WebGPU) and the tests copy this way. Inputs, outputs and KV go by the bindings of runs.
   * @throws ServingError runtime_failed; the signal's reason.
   */
  copy(from: readonly BoundValue[], to: readonly BoundValue[], signal?: AbortSignal): Promise<void> {
    return this.lane.run(async () => {
      const { api, env } = runtime();
      await offLoop(api, api.copyTensors, env, pointers(from), pointers(to), null, from.length);
    }, signal);
  }

  /**
   * Ends the use by one holder, whose sessions and tensors are disposed of already. The last one frees the device,
   * after the runs and copies that came before.
   */
  async dispose(): Promise<void> {
    if (!this.#leave()) return;
    await this.lane.run(() => {
      const { api } = runtime();
      if (this.#pinned !== undefined) api.releaseAllocator(this.#pinned);
      api.releaseAllocator(this.#allocator);
      api.releaseSession(this.#session);
      this.#provider.close();
    });
  }

  /** @internal */
  wrapHead(tensor: DeviceTensor, dims: readonly number[]): Pointer {
    const { api } = runtime();
    return wrap(this.#memory, create(api, api.getTensorMutableData, tensor.pointer), tensor.type, dims);
  }

  /** @internal */
  free(tensor: DeviceTensor, ownsMemory: boolean): void {
    if (ownsMemory) this.#bytes -= tensor.bytes;
    this.lane.after(() => runtime().api.releaseValue(tensor.pointer));
  }
}

/** Addresses of values in memory that V8 does not move: the copy reads them on another thread. */
function pointers(values: readonly BoundValue[]): BigUint64Array {
  const array = new BigUint64Array(new ArrayBuffer(Math.max(1, values.length) * 8));
  for (const [i, { pointer }] of values.entries()) array[i] = pointer;
  return array;
}

/**
 * Opens a session of the smallest graph: it proves that the device starts, and owns the allocators.
 * @throws ServingError runtime_failed also for a provider that leaves an addition to the CPU: it would compute nothing.
 */
async function openProbe(provider: Provider): Promise<Pointer> {
  const { api, env } = runtime();
  const graph = new Graph();
  const x = graph.input('x', 'float32', [1]);
  graph.output(graph.node('Add', 'sum', [x, x]), 'float32', [1]);
  const options = create(api, api.createSessionOptions);
  try {
    assertOk(api, api.addSessionConfigEntry(options, 'session.disable_cpu_ep_fallback', '1'));
    provider.append(options, {});
    const model = encodeModel(graph);
    const out: Out = [null];
    await offLoop(api, api.createSessionFromArray, env, model, model.length, options, out);
    return out[0] as Pointer;
  } finally {
    api.releaseSessionOptions(options);
  }
}

/** The memory in which a session wants its first input. */
function memoryOf(session: Pointer): Pointer {
  const { api } = runtime();
  const found = new BigUint64Array(new ArrayBuffer(8));
  assertOk(api, api.sessionMemoryOfInputs(session, found, 1));
  return found[0] as Pointer;
}

/** A device that is open or being opened. */
interface OpenDevice {
  readonly opening: Promise<Accelerator>;
  holders: number;
}

const openDevices = new Map<string, OpenDevice>();
/** A device that is opened again waits until it is closed. */
const lanes = new Map<string, FifoLane>();

/**
 * Opens a device, or holds it once more if it is open already. Whoever gets it must dispose of it.
 * @throws ServingError provider_unavailable, with the reason and the remedy; nothing stays open then.
 */
export function openDevice(setting: DeviceSetting): Promise<Device> {
  if (setting.provider === 'cpu') return Promise.resolve(CPU);
  const { provider, providerLibrary = '', deviceId = 0 } = setting;
  const key = [provider, deviceId, providerLibrary].join(' ');
  const known = openDevices.get(key);
  if (known) {
    known.holders++;
    return known.opening;
  }
  const lane = lanes.get(key) ?? new FifoLane();
  lanes.set(key, lane);
  endAlthoughHung(() => [...lanes.values()].some(({ busy }) => busy));
  const leave = () => {
    if (--made.holders > 0) return false;
    openDevices.delete(key);
    return true;
  };
  const made: OpenDevice = { opening: Accelerator.open(setting, lane, leave), holders: 1 };
  openDevices.set(key, made);
  made.opening.catch(() => openDevices.delete(key));
  return made.opening;
}
