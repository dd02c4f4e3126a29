/** The settings with which a session of ONNX Runtime is opened: threads, spinning, provider. */
import { readFileSync } from 'node:fs';
import { cpus } from 'node:os';
import type { FileGuard } from '../model/bundle/integrity.ts';
import type { Logger } from '../process/log.ts';
import { CPU, type Device } from './device.ts';
import { assertOk, create, type Out, offLoop, type Pointer, runtime } from './ort-api.ts';

/** The place where prepacked weights are kept; see prepacked.ts. */
export interface PrepackedCache {
  /** Folder; created if it does not exist. */
  readonly dir: string;
  /** SHA-256 (hex) of the bundle that the graph belongs to. */
  readonly fingerprint: string;
  readonly log: Pick<Logger, 'info' | 'warn'>;
  /** Verifies the graph's files, and is told of the prepacked ones. */
  readonly files: FileGuard;
}

export interface SessionOptions {
  /** Where to compute; the CPU if not given. */
  readonly device?: Device;
  /** Record runs on the device, and replay them; see DeviceSessionOptions. */
  readonly graphCapture?: boolean;
  /** Refuse a graph of which the device cannot compute every node; by default the CPU computes the others. */
  readonly whole?: boolean;
  /** On a device: note which operators are left to the CPU, for `leftToCpu` of the session. */
  readonly recordsPlacement?: boolean;
  /** Threads of the CPU, also for operators that the device cannot compute. */
  readonly threads: number;
  /** Let idle threads spin between operators: faster, unless others share the cores. */
  readonly spin?: boolean;
  /** Place of the weights in the form that the CPU computes with. Without it every session makes its own copy. */
  readonly prepacked?: PrepackedCache;
  /**
   * `false` computes with the weights as they lie in the mapped file. Training multiplies by each matrix in both
   * directions, and the session would otherwise keep a packed copy for each: 5.4 GiB instead of 3.1 for a 0.5B model in
   * 32-bit floats, for 25 % less CPU time.
   */
  readonly packWeights?: boolean;
}

/**
 * Whether sums of 8-bit products may saturate on this CPU: x86 without VNNI adds them in pairs of 16 bits. In
 * emulation, W8A8 prompts then deviate three times as far from 32-bit floats (KL 3.1e-3 instead of 1.1e-3; tiny-coder).
 * @param cpuinfo /proc/cpuinfo of Linux; '' if unknown.
 */
export const saturates = (cpuinfo: string) => /^flags\s*:/m.test(cpuinfo) && !/\bavx(512)?_vnni\b/.test(cpuinfo);

let cpuInfoText: string | undefined;

/** /proc/cpuinfo of Linux; '' on other systems. Read only once, because its length grows with the number of cores. */
function cpuInfo(): string {
  if (cpuInfoText !== undefined) return cpuInfoText;
  try {
    cpuInfoText = readFileSync('/proc/cpuinfo', 'utf8');
  } catch {
    cpuInfoText = '';
  }
  return cpuInfoText;
}

/** Platform and instruction sets as Linux lists them; on other systems the CPU's name. */
export function cpuFeatures(): string {
  const listed = /^(?:flags|Features)\s*:\s*(.+)$/m.exec(cpuInfo())?.[1];
  return `${process.platform}-${process.arch} ${listed ?? cpus()[0]?.model ?? 'unknown'}`;
}

export class SessionSettings {
  readonly #pointer: Pointer;

  /** @throws ServingError runtime_failed */
  constructor(options: SessionOptions) {
    const { device = CPU, whole = false, graphCapture } = options;
    const { api } = runtime();
    this.#pointer = create(api, api.createSessionOptions);
    try {
      assertOk(api, api.setIntraOpNumThreads(this.#pointer, options.threads));
      assertOk(api, api.disableMemPattern(this.#pointer)); // shapes change from run to run
      this.set('session.intra_op.allow_spinning', options.spin ? '1' : '0');
      this.set('session.set_denormal_as_zero', '1');
      if (options.packWeights === false) this.set('session.disable_prepacking', '1');
      // Makes ONNX Runtime use kernels that do not saturate. With VNNI these would be slower.
      if (process.arch === 'x64' && saturates(cpuInfo())) this.set('session.x64quantprecision', '1');
      if (whole) this.set('session.disable_cpu_ep_fallback', '1');
      device.append(this.#pointer, { graphCapture });
      if (options.recordsPlacement) this.set('session.record_ep_graph_assignment_info', '1');
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  set(key: string, value: string): void {
    const { api } = runtime();
    assertOk(api, api.addSessionConfigEntry(this.#pointer, key, value));
  }

  /** Makes the session write its optimised graph to `path`. */
  writeGraphTo(path: string): void {
    const { api } = runtime();
    assertOk(api, api.setOptimizedModelFilePath(this.#pointer, path));
  }

  /**
   * Opens the session of a graph on a worker thread.
   * @param model its path, or its bytes.
   * @throws ServingError runtime_failed for a broken graph.
   */
  async open(model: string | Uint8Array): Promise<Pointer> {
    const { api, env } = runtime();
    const out: Out = [null];
    if (typeof model === 'string') await offLoop(api, api.createSession, env, model, this.#pointer, out);
    else await offLoop(api, api.createSessionFromArray, env, model, model.length, this.#pointer, out);
    return out[0] as Pointer;
  }

  [Symbol.dispose](): void {
    runtime().api.releaseSessionOptions(this.#pointer);
  }
}
