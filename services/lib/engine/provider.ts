/**
 * How a session is told to compute on an accelerator: WebGPU and CUDA by the library that onnxruntime-node ships, any
 * other by a library of its own (a plugin). Unknown options are ignored by the runtime without a word, so only options
 * that it is known to have are passed.
 */
import { existsSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { ServingError } from '../process/errors.ts';
import { assertOk, create, libraryPath, loadFault, type Out, type Pointer, readPointers, runtime } from './ort-api.ts';
import { inWords, vulkanDevices } from './vulkan.ts';

/** Which accelerator to open. */
export interface ProviderSetting {
  readonly provider: 'webgpu' | 'cuda' | 'plugin';
  /** For `plugin`: path of the provider's library. */
  readonly providerLibrary?: string;
  /**
   * For `cuda` and `plugin`: which of its devices, counted from 0. WebGPU takes the one that Vulkan lists first
   * (`VK_DRIVER_FILES` or the devices of a container choose).
   */
  readonly deviceId?: number;
}

/** What a session asks of the device, beyond computing there. */
export interface DeviceSessionOptions {
  /**
   * Record the commands of a run and replay them in later runs. Every input must then be bound to memory of the device,
   * and the shapes of a recording never change. Only WebGPU does it.
   */
  readonly graphCapture?: boolean;
}

export interface Provider {
  /** The provider and the device, for logs and errors. */
  readonly name: string;
  /** Whose kernels compute there: for a plugin the kind of its provider, if it is one that is known. */
  readonly kernels: ProviderSetting['provider'];
  /** Makes a session compute there. */
  append(options: Pointer, wishes: DeviceSessionOptions): void;
  /** Describes page-locked memory of the host, if the provider can allocate any; freed by {@link close}. */
  readonly pinnedMemory?: Pointer;
  close(): void;
  /** What the operator can do if the device does not start. */
  remedy(): string;
}

/** OrtMemType and OrtAllocatorType of page-locked memory of the host. */
const MEMORY_OF_HOST = -1;
const ALLOCATOR_DEVICE = 0;
/** OrtHardwareDeviceType */
const HARDWARE_GPU = 1;
/** The name under which a plugin is registered. A process has at most one. */
const PLUGIN = 'llavacode';

/**
 * @throws ServingError provider_unavailable if the provider is not there. Whether it starts is known only when a
 *   session is opened.
 */
export function openProvider(setting: ProviderSetting): Provider {
  if (setting.provider === 'webgpu') return webGpu();
  return setting.provider === 'cuda' ? cuda(setting) : plugin(setting);
}

/** @returns ServingError provider_unavailable for whatever the runtime said. */
export function unavailable(provider: Pick<Provider, 'name' | 'remedy'>, error: unknown): ServingError {
  const reason = (error instanceof Error ? error.message : String(error))
    .replace(/^ONNX Runtime: /, '')
    // A place in the runtime's sources, and the condition that did not hold there.
    .replace(/^\/onnxruntime_src\S*:\d+ (.*?\[ONNXRuntimeError\] : \d+ : \w+ : |.*? was false\. )?/s, '')
    .trim();
  return new ServingError(
    'provider_unavailable',
    `${provider.name} cannot be used (${reason}): ${provider.remedy()}, or use --provider cpu`,
    { cause: error },
  );
}

/** The vendors of the GPUs that the system lists; software devices do not count. */
export function gpuVendors(): string[] {
  const { api, env } = runtime();
  const count: [number | bigint] = [0];
  assertOk(api, api.getHardwareDeviceCount(env, count));
  const found = new BigUint64Array(new ArrayBuffer(8 * Math.max(1, Number(count[0]))));
  assertOk(api, api.getHardwareDevices(env, found, Number(count[0])));
  return [...found.subarray(0, Number(count[0]))]
    .filter((device) => api.hardwareType(device) === HARDWARE_GPU)
    .map((device) => api.hardwareVendor(device) || 'a vendor without a name');
}

/** Our graphs are fixed, and checked at start. By default every command would be validated again. */
const WEBGPU_OPTIONS = { validationMode: 'disabled' };

function webGpu(): Provider {
  const { api } = runtime();
  const devices = vulkanDevices();
  return {
    // Which of several it takes, it does not say.
    kernels: 'webgpu',
    name: devices.length === 0 ? 'WebGPU' : `WebGPU on ${devices.length > 1 ? 'one of ' : ''}${inWords(devices)}`,
    append(options, { graphCapture = false }) {
      const wanted = {
        ...WEBGPU_OPTIONS,
        ...(graphCapture ? { enableGraphCapture: '1' } : {}),
      };
      const keys = Object.keys(wanted);
      assertOk(api, api.appendProvider(options, 'WebGPU', keys, Object.values(wanted), keys.length));
    },
    close: () => {},
    remedy() {
      if (process.platform !== 'linux') return 'install a driver of the GPU';
      const loader = loadFault('libvulkan.so.1');
      return loader
        ? 'install the Vulkan loader (libvulkan.so.1, Debian: libvulkan1)'
        : "install the GPU's Vulkan driver, and give a container its devices (/dev/dri, or NVIDIA_DRIVER_CAPABILITIES with graphics)";
    },
  };
}

/** What the CUDA provider of ONNX Runtime 1.30 loads, and where it comes from. */
const CUDA_LIBRARIES = {
  'libcuda.so.1': 'the NVIDIA driver',
  'libcudart.so.12': 'the CUDA 12 runtime',
  'libcublasLt.so.12': 'cuBLAS of CUDA 12',
  'libcublas.so.12': 'cuBLAS of CUDA 12',
  'libcurand.so.10': 'cuRAND of CUDA 12',
  'libcufft.so.11': 'cuFFT of CUDA 12',
  'libcudnn.so.9': 'cuDNN 9',
} as const;

/**
 * Settings of a session on CUDA. The kernels that multiply quantised weights by many rows are off by default; which
 * matrices they take is said in model/bundle/weight-formats.ts. A session then tries variants of the kernel for each
 * shape of matrix while it is opened. They take no bias in the node: our graphs add it apart, and the optimiser must
 * not merge the two.
 */
const CUDA_SESSION = {
  'ep.cuda.fpa_intb_gemm': '1',
  'optimization.disable_specified_optimizers': 'MatMulNBitsFusion',
};

/** Options that the CUDA provider and its plugin have in common. */
const CUDA_OPTIONS = {
  // Without this, products of 32-bit floats are computed with 10 bits of mantissa. Other types do not care.
  use_tf32: '0',
  // cuDNN would otherwise try every algorithm of a convolution at its first run. Our graphs have none.
  cudnn_conv_algo_search: 'HEURISTIC',
};

/**
 * By default the arena doubles whenever it grows, and could take the memory of a second worker on the card. There is a
 * limit for each arena (gpu_mem_limit), and each session has one, so it could not bound a process.
 */
const CUDA_ARENA = { arena_extend_strategy: 'kSameAsRequested' };

function addEntries(options: Pointer, entries: Readonly<Record<string, string>>): void {
  const { api } = runtime();
  for (const [key, value] of Object.entries(entries)) assertOk(api, api.addSessionConfigEntry(options, key, value));
}

function cuda({ deviceId = 0 }: ProviderSetting): Provider {
  const { api } = runtime();
  const pinnedMemory = create(api, api.createMemoryInfo, 'CudaPinned', ALLOCATOR_DEVICE, deviceId, MEMORY_OF_HOST);
  const settings = {
    device_id: String(deviceId),
    do_copy_in_default_stream: '1',
    ...CUDA_ARENA,
    ...CUDA_OPTIONS,
  };
  return {
    kernels: 'cuda',
    name: `CUDA device ${deviceId}`,
    pinnedMemory,
    append(options) {
      addEntries(options, CUDA_SESSION);
      const filled = create(api, api.createCudaOptions);
      try {
        const keys = Object.keys(settings);
        assertOk(api, api.updateCudaOptions(filled, keys, Object.values(settings), keys.length));
        assertOk(api, api.appendCuda(options, filled));
      } finally {
        api.releaseCudaOptions(filled);
      }
    },
    close: () => api.releaseMemoryInfo(pinnedMemory),
    remedy: cudaRemedy,
  };
}

/** Names the libraries that the loader cannot find. The runtime's own message does not. */
function cudaRemedy(): string {
  if (process.platform !== 'linux' || process.arch !== 'x64') return 'CUDA needs linux-x64';
  const missing = Object.entries(CUDA_LIBRARIES).filter(([library]) => loadFault(library) !== undefined);
  const remedies = missing.map(([library, origin]) => `${library} (${origin})`);
  const own = join(dirname(libraryPath()), 'libonnxruntime_providers_cuda.so');
  if (!existsSync(own)) {
    const install = 'node node_modules/onnxruntime-node/script/install --onnxruntime-node-install=cuda12';
    remedies.push(`${basename(own)} (${install})`);
  }
  if (remedies.length === 0) return 'look with nvidia-smi whether the device exists and is free';
  return `missing: ${remedies.join(', ')}; install them where the loader looks (LD_LIBRARY_PATH)`;
}

/** What is known of the provider of a plugin, by the name that it gives itself. */
interface KnownPlugin {
  readonly kernels: 'cuda' | 'webgpu';
  readonly options: Readonly<Record<string, string>>;
  readonly session: Readonly<Record<string, string>>;
}

/** CUDA's own library is a plugin, too; that which is one only names the strategy otherwise (1: as requested). */
const PLUGINS = new Map<string, KnownPlugin>([
  ['CUDAExecutionProvider', { kernels: 'cuda', options: { ...CUDA_OPTIONS, ...CUDA_ARENA }, session: CUDA_SESSION }],
  [
    'CudaPluginExecutionProvider',
    { kernels: 'cuda', options: { ...CUDA_OPTIONS, 'arena.extend_strategy': '1' }, session: CUDA_SESSION },
  ],
  ['WebGpuExecutionProvider', { kernels: 'webgpu', options: WEBGPU_OPTIONS, session: {} }],
]);

function plugin({ providerLibrary = '', deviceId = 0 }: ProviderSetting): Provider {
  const { api, env } = runtime();
  const refused = (error: unknown) =>
    unavailable({ name: `the provider of ${providerLibrary || '(no library)'}`, remedy }, error);
  const remedy = () => 'set --provider-library to a provider plugin built for ONNX Runtime 1.23 or later';
  if (providerLibrary === '') throw refused('--provider-library is not set');
  try {
    const { devices, unregister } = register(providerLibrary);
    const device = devices[deviceId];
    if (device === undefined) {
      unregister();
      throw new Error(`it offers ${devices.length} devices, --device-id is ${deviceId}`);
    }
    const vendor = api.hardwareVendor(api.hardwareOfDevice(device));
    const provider = api.providerOfDevice(device);
    const known = PLUGINS.get(provider);
    const keys = Object.keys(known?.options ?? {});
    const values = Object.values(known?.options ?? {});
    return {
      name: `${provider} on ${vendor || 'a device without a name'}`,
      kernels: known?.kernels ?? 'plugin',
      append(options) {
        addEntries(options, known?.session ?? {});
        assertOk(api, api.appendProviderDevices(options, env, BigUint64Array.of(device), 1, keys, values, keys.length));
      },
      close: unregister,
      remedy,
    };
  } catch (error) {
    throw refused(error);
  }
}

/**
 * Loads a plugin.
 * @returns its devices, GPUs first, and what unloads it. The runtime offers a plugin only hardware that the kernel
 *   lists, so a software GPU is not among them.
 */
function register(library: string): { readonly devices: readonly Pointer[]; readonly unregister: () => void } {
  const { api, env } = runtime();
  const before = new Set(providerDevices());
  assertOk(api, api.registerProviderLibrary(env, PLUGIN, library));
  const found = providerDevices().filter((device) => !before.has(device));
  const isGpu = (device: Pointer) => Number(api.hardwareType(api.hardwareOfDevice(device)) === HARDWARE_GPU);
  return {
    devices: found.toSorted((a, b) => isGpu(b) - isGpu(a)),
    unregister: () => assertOk(api, api.unregisterProviderLibrary(env, PLUGIN)),
  };
}

/** All devices of all providers that the runtime knows. */
function providerDevices(): Pointer[] {
  const { api, env } = runtime();
  const devices: Out = [null];
  const count: [number | bigint] = [0];
  assertOk(api, api.getProviderDevices(env, devices, count));
  return Number(count[0]) === 0 ? [] : readPointers(devices[0] as Pointer, Number(count[0]));
}
