/**
 * The C functions of ONNX Runtime that this project calls by FFI. Only this file loads the library that
 * onnxruntime-node ships. A function is found by its position in the `OrtApi` table; positions never change once
 * published (`onnxruntime_c_api.h`).
 */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import koffi from 'koffi';
import { ServingError } from '../process/errors.ts';

export const RUNTIME_VERSION = '1.30.0';
const API_VERSION = 24;
/** Functions of the table up to the last one that is called; version 24 has more. */
const TABLE_LENGTH = 413;

/** A native pointer; koffi represents it as a bigint. */
export type Pointer = bigint;
export type Out = [Pointer | null];
/** A function of the C API that returns a status; null or 0n means success. */
export type StatusCall = ((...args: unknown[]) => Pointer | null) & {
  async: (...args: [...unknown[], (error: Error | null, status: Pointer | null) => void]) => void;
};

export function libraryPath(): string {
  const root = dirname(createRequire(import.meta.url).resolve('onnxruntime-node/package.json'));
  const folder = join(root, 'bin', 'napi-v6', process.platform, process.arch);
  const names = ['libonnxruntime.so.1', `libonnxruntime.${RUNTIME_VERSION}.dylib`, 'onnxruntime.dll'];
  const path = names.map((name) => join(folder, name)).find((candidate) => existsSync(candidate));
  if (path === undefined) {
    throw new ServingError(
      'runtime_unsupported',
      `onnxruntime-node ships no library for ${process.platform}-${process.arch}; use linux-x64, linux-arm64, darwin-arm64 or win32-x64`,
    );
  }
  return path;
}

/**
 * ONNX Runtime for Linux is built with telemetry that is on by default: it writes a device id and a queue of events
 * under HOME, and sends them to a server of its maker. The library reads this variable of the process when it is
 * loaded, so it is set before. {@link runtime} turns the events off by the API as well.
 */
function turnTelemetryOff(): void {
  process.env['ORT_DISABLE_TELEMETRY'] = '1';
}

/** Finds a function that returns a value. */
type Plain = (index: number, result: string, args: string[]) => ReturnType<typeof koffi.decode>;
/** Finds a function that returns a status. */
type Fallible = (index: number, ...args: unknown[]) => StatusCall;

const p = 'void *';
const out = koffi.out(koffi.pointer('void *'));
const size = koffi.out(koffi.pointer('size_t'));
/** An array of strings. */
const names = koffi.pointer('char *');
/** ORTCHAR_T: file paths are wide on Windows. */
const path = process.platform === 'win32' ? 'str16' : 'str';

function loadApi() {
  turnTelemetryOff();
  // The default stack of a koffi worker thread is too small for ONNX Runtime, which overruns it without an error.
  koffi.config({ async_stack_size: 8 << 20 });
  const library = koffi.load(libraryPath());
  const base = koffi.struct({ GetApi: 'void *', GetVersionString: 'void *' });
  const { GetApi, GetVersionString } = koffi.decode(library.func('OrtGetApiBase', koffi.pointer(base), [])(), base);
  const version: string = koffi.decode(GetVersionString, koffi.proto('str', []))();
  if (version !== RUNTIME_VERSION) {
    throw new ServingError(
      'runtime_unsupported',
      `ONNX Runtime is ${version}, this build needs ${RUNTIME_VERSION}: reinstall onnxruntime-node`,
    );
  }
  const api: Pointer = koffi.decode(GetApi, koffi.proto('void *', ['uint32_t']))(API_VERSION);
  const table: Pointer[] = koffi.decode(api, koffi.array('void *', TABLE_LENGTH));
  const at: Plain = (index, result, args) => koffi.decode(table[index], koffi.proto(result, args));
  const status: Fallible = (index, ...args) => koffi.decode(table[index], koffi.proto('void *', args as string[]));
  return {
    /** Referenced from here, because koffi unloads a library that was collected, and the next call would crash. */
    library,
    ...deviceCalls(at, status),
    getErrorMessage: at(2, 'str', [p]) as (status: Pointer) => string,
    createEnv: status(3, 'int', 'str', out),
    disableTelemetryEvents: status(6, p),
    createSession: status(7, p, path, p, out),
    createSessionFromArray: status(8, p, p, 'size_t', p, out),
    createSessionOptions: status(10, out),
    setOptimizedModelFilePath: status(11, p, path),
    disableMemPattern: status(17, p),
    setIntraOpNumThreads: status(24, p, 'int'),
    sessionGetInputCount: status(30, p, size),
    sessionGetOutputCount: status(31, p, size),
    sessionGetInputName: status(36, p, 'size_t', p, out),
    sessionGetOutputName: status(37, p, 'size_t', p, out),
    createRunOptions: status(39, out),
    runOptionsSetTerminate: status(46, p),
    runOptionsUnsetTerminate: status(47, p),
    createTensorWithData: status(49, p, p, 'size_t', p, 'size_t', 'int', out),
    getTensorMutableData: status(51, p, out),
    getTensorElementType: status(60, p, koffi.out(koffi.pointer('int'))),
    getDimensionsCount: status(61, p, size),
    getDimensions: status(62, p, p, 'size_t'),
    getTensorTypeAndShape: status(65, p, out),
    createCpuMemoryInfo: status(69, 'int', 'int', out),
    allocatorFree: status(76, p, p),
    getDefaultAllocator: status(78, out),
    addSessionConfigEntry: status(130, p, 'str', 'str'),
    runWithBinding: status(133, p, p, p),
    createIoBinding: status(134, p, out),
    addRunConfigEntry: status(165, p, 'str', 'str'),
    bindInput: status(136, p, 'str', p),
    bindOutput: status(137, p, 'str', p),
    bindOutputToDevice: status(138, p, 'str', p),
    getBoundOutputValues: status(140, p, p, out, size),
    releaseStatus: at(93, 'void', [p]) as (pointer: Pointer) => void,
    releaseSession: at(95, 'void', [p]) as (pointer: Pointer) => void,
    releaseValue: at(96, 'void', [p]) as (pointer: Pointer) => void,
    releaseRunOptions: at(97, 'void', [p]) as (pointer: Pointer) => void,
    releaseTensorTypeAndShape: at(99, 'void', [p]) as (pointer: Pointer) => void,
    releaseSessionOptions: at(100, 'void', [p]) as (pointer: Pointer) => void,
    releaseIoBinding: at(135, 'void', [p]) as (pointer: Pointer) => void,
  };
}

/** The calls that only accelerators need. */
function deviceCalls(at: Plain, status: Fallible) {
  return {
    createTensor: status(48, p, p, 'size_t', 'int', out),
    createMemoryInfo: status(68, 'str', 'int', 'int', 'int', out),
    createAllocator: status(131, p, p, out),
    appendCuda: status(204, p, p),
    createCudaOptions: status(205, out),
    updateCudaOptions: status(206, p, names, names, 'size_t'),
    appendProvider: status(216, p, 'str', names, names, 'size_t'),
    registerProviderLibrary: status(301, p, 'str', path),
    unregisterProviderLibrary: status(302, p, 'str'),
    getProviderDevices: status(303, p, out, size),
    appendProviderDevices: status(304, p, p, p, 'size_t', names, names, 'size_t'),
    hardwareType: at(307, 'int', [p]) as (hardware: Pointer) => number,
    hardwareVendor: at(309, 'str', [p]) as (hardware: Pointer) => string | null,
    providerOfDevice: at(312, 'str', [p]) as (device: Pointer) => string,
    hardwareOfDevice: at(316, p, [p]) as (device: Pointer) => Pointer,
    sessionMemoryOfInputs: status(380, p, p, 'size_t'),
    copyTensors: status(386, p, p, p, p, 'size_t'),
    getHardwareDeviceCount: status(397, p, size),
    getHardwareDevices: status(398, p, p, 'size_t'),
    getAssignedSubgraphs: status(407, p, out, size),
    providerOfSubgraph: status(408, p, out),
    nodesOfSubgraph: status(409, p, out, size),
    operatorOfNode: status(412, p, out),
    releaseMemoryInfo: at(94, 'void', [p]) as (pointer: Pointer) => void,
    releaseAllocator: at(132, 'void', [p]) as (pointer: Pointer) => void,
    releaseCudaOptions: at(208, 'void', [p]) as (pointer: Pointer) => void,
  };
}

let loaded: { api: ReturnType<typeof loadApi>; env: Pointer; cpu: Pointer; allocator: Pointer } | undefined;

/** The library, loaded on first use, and the one environment of the process, which is never released. */
export function runtime() {
  if (loaded === undefined) {
    const api = loadApi();
    const made = (call: StatusCall, ...args: unknown[]) => create(api, call, ...args);
    const env = made(api.createEnv, 4, 'llavacode'); // 4: log fatal errors only; all others are returned as statuses
    assertOk(api, api.disableTelemetryEvents(env));
    loaded = {
      api,
      env,
      cpu: made(api.createCpuMemoryInfo, 0, 0), // device allocator, default memory
      allocator: made(api.getDefaultAllocator),
    };
  }
  return loaded;
}

export type Api = ReturnType<typeof loadApi>;

export function assertOk(api: Api, status: Pointer | null): void {
  if (status === null || status === 0n) return;
  const message = api.getErrorMessage(status);
  api.releaseStatus(status);
  throw new ServingError('runtime_failed', `ONNX Runtime: ${message}`);
}

export function create(api: Api, call: StatusCall, ...args: unknown[]): Pointer {
  const out: Out = [null];
  assertOk(api, call(...args, out));
  return out[0] as Pointer;
}

/** Runs a call of the C API on a worker thread, so that it does not block the event loop. */
export function offLoop(api: Api, call: StatusCall, ...args: unknown[]): Promise<void> {
  return new Promise((resolve, reject) => {
    call.async(...args, (error, status) => {
      if (error) return reject(error);
      try {
        resolve(assertOk(api, status));
      } catch (failure) {
        reject(failure);
      }
    });
  });
}

/** Array types by length. They are kept, because koffi never frees all of a type that it has made. */
const pointerArrays = new Map<number, ReturnType<typeof koffi.array>>();

/** Reads `count` consecutive pointers from native memory. */
export function readPointers(array: Pointer, count: number): Pointer[] {
  const type = pointerArrays.get(count) ?? koffi.array('void *', count);
  pointerArrays.set(count, type);
  return koffi.decode(array, type);
}

/** Native memory itself, valid as long as its owner keeps it. */
export const viewBytes = (address: Pointer, bytes: number): ArrayBuffer => koffi.view(address, bytes);

/** Copies bytes from native memory. */
export const readBytes = (address: Pointer, bytes: number): Uint8Array =>
  new Uint8Array(new Uint8Array(viewBytes(address, bytes)));

/** Reads a NUL-terminated string from native memory. */
export const readString = (address: Pointer): string => koffi.decode.string(address);

/** Why the system's loader cannot load a library; undefined if it can. */
export function loadFault(library: string): string | undefined {
  try {
    koffi.load(library).unload();
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}
