/** How a session of ONNX Runtime is opened: threads, spinning, provider. */

import { readFileSync } from 'node:fs';
import { ServingError } from '../process/errors.ts';
import type { Logger } from '../process/log.ts';
import {
  type Api,
  assertOk,
  create,
  libraryPath,
  type Out,
  offLoop,
  type Pointer,
  RUNTIME_VERSION,
  runtime,
} from './ort-api.ts';
import type { PROVIDERS } from './settings.ts';

/** Where prepacked weights are kept; see prepacked.ts. */
export interface PrepackedCache {
  /** Folder; made when it is not there. */
  readonly dir: string;
  /** Of the bundle that the graph is from. */
  readonly fingerprint: string;
  readonly log: Pick<Logger, 'info' | 'warn'>;
}

export interface SessionOptions {
  readonly provider: (typeof PROVIDERS)[number];
  readonly threads: number;
  /** Let idle threads spin between operators: faster, unless others share the cores. */
  readonly spin?: boolean;
  /** Told when `auto` falls back to the CPU, with the reason. */
  readonly onFallback?: (reason: string) => void;
  /** Where the weights lie in the form that the CPU computes with; without it every session makes its own copy. */
  readonly prepacked?: PrepackedCache;
}

/**
 * Whether sums of products of 8 bits may saturate: x86 without VNNI adds them in pairs of 16 bits. By emulation, prompts of
 * W8A8 come out three times as far from those of 32-bit floats (KL 3.1e-3, 1.1e-3 otherwise; tiny-coder).
 * @param cpuinfo of Linux; '' elsewhere, where it is not known.
 */
export const saturates = (cpuinfo: string) => /^flags\s*:/m.test(cpuinfo) && !/\bavx(512)?_vnni\b/.test(cpuinfo);

let known: string | undefined;

/** What Linux says of this machine's CPU; '' elsewhere. Read once: it grows with the cores. */
export function cpuInfo(): string {
  if (known !== undefined) return known;
  try {
    known = readFileSync('/proc/cpuinfo', 'utf8');
  } catch {
    known = '';
  }
  return known;
}

export class SessionSettings {
  /** Whether the session computes on a GPU. */
  readonly cuda: boolean;
  readonly #pointer: Pointer;

  /** @throws ServingError provider_unavailable where CUDA is asked for and missing. */
  constructor(options: SessionOptions) {
    const { api } = runtime();
    this.#pointer = create(api, api.createSessionOptions);
    try {
      assertOk(api, api.setIntraOpNumThreads(this.#pointer, options.threads));
      assertOk(api, api.disableMemPattern(this.#pointer)); // shapes change from run to run
      this.set('session.intra_op.allow_spinning', options.spin ? '1' : '0');
      this.set('session.set_denormal_as_zero', '1');
      // Rewrites graphs to kernels that do not; with VNNI these are the slower ones.
      if (process.arch === 'x64' && saturates(cpuInfo())) this.set('session.x64quantprecision', '1');
      this.cuda = options.provider !== 'cpu' && appendCuda(api, this.#pointer, options);
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  set(key: string, value: string): void {
    const { api } = runtime();
    assertOk(api, api.addSessionConfigEntry(this.#pointer, key, value));
  }

  /** The session writes its graph, as optimised, to `path`. */
  writeGraphTo(path: string): void {
    const { api } = runtime();
    assertOk(api, api.setOptimizedModelFilePath(this.#pointer, path));
  }

  /**
   * The session of a graph, opened off the event loop.
   * @throws ServingError runtime_failed for a broken graph.
   */
  async open(graph: string): Promise<Pointer> {
    const { api, env } = runtime();
    const out: Out = [null];
    await offLoop(api, api.createSession, env, graph, this.#pointer, out);
    return out[0] as Pointer;
  }

  [Symbol.dispose](): void {
    runtime().api.releaseSessionOptions(this.#pointer);
  }
}

/** Whether it worked; where it need not, the reason is told. */
function appendCuda(api: Api, settings: Pointer, options: SessionOptions): boolean {
  try {
    const cuda = create(api, api.createCudaOptions);
    try {
      assertOk(api, api.appendCuda(settings, cuda));
    } finally {
      api.releaseCudaOptions(cuda);
    }
    return true;
  } catch (error) {
    const reason = `CUDA is not available (${ServingError.from(error).message}). Install an NVIDIA driver, the CUDA runtime and ONNX Runtime ${RUNTIME_VERSION}'s libonnxruntime_providers_cuda.so and libonnxruntime_providers_shared.so beside ${libraryPath().split(/[\\/]/).pop()}`;
    if (options.provider === 'cuda') throw new ServingError('provider_unavailable', reason, { cause: error });
    options.onFallback?.(reason);
    return false;
  }
}
