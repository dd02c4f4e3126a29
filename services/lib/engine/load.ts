/**
 * Makes a worker's engine from its settings: bundle, device, KV pool, decoder. It is warm before the worker says it is
 * ready, and on a device it has been compared with the CPU.
 */
import { join } from 'node:path';
import type { KvOrigin } from '../kv/disk/extent.ts';
import type { KvLayout } from '../kv/layout.ts';
import { KvPool } from '../kv/pool.ts';
import { assertRunsOn, type Bundle, filesOf, openBundle, promptPart } from '../model/bundle/bundle.ts';
import type { FileGuard } from '../model/bundle/integrity.ts';
import type { ConfigOf } from '../process/config.ts';
import { parseCpus } from '../process/cpus.ts';
import { ServingError } from '../process/errors.ts';
import type { Logger } from '../process/log.ts';
import { metrics } from '../process/metrics.ts';
import { NO_SOFT_TOKENS } from '../request/token-prompt.ts';
import { openCpuKv } from './bundle-kv.ts';
import { type DeviceReport, loadOnDevice } from './choose-device.ts';
import { assertComputesLongChunks } from './chunk-check.ts';
import { type Accelerator, type Device, type DeviceSetting, openDevice } from './device.ts';
import { DeviceKv } from './device-kv.ts';
import type { EngineKv } from './engine-kv.ts';
import { kvLayoutOf } from './kv-layout.ts';
import {
  assertFitsDevice,
  assertFitsMachine,
  assertReferenceFits,
  DEFAULT_CHUNK_TOKENS,
  engineMemory,
} from './memory.ts';
import type { SessionOptions } from './ort.ts';
import { pinProcess } from './ort-affinity.ts';
import { RUNTIME_VERSION } from './ort-api.ts';
import { cpuFeatures } from './ort-settings.ts';
import { keptReference, referenceName } from './reference.ts';
import {
  assertComputesRight,
  assertKeepsKv,
  CHECKED_POSITIONS,
  CHECKED_ROWS,
  limitsOf,
  referenceOf,
  type SelfCheck,
} from './self-check.ts';
import { DecoderSession } from './session.ts';
import { DEFAULT_CAPACITY, type ENGINE_SETTINGS } from './settings.ts';
import { assertStepsRight } from './step-check.ts';

export type EngineConfig = ConfigOf<typeof ENGINE_SETTINGS> & {
  /** Tokens of a prompt's chunk, for workers that compute prompts. */
  readonly prefillChunkTokens?: number;
  /** For workers that decode: whether to have verify runs, where this machine can give them; off when not given. */
  readonly speculation?: 'auto' | 'off';
};

/** What a worker computes. Prompts may have weights of their own, and a device lays slots out by it. */
export type EngineWork = 'prefill' | 'decode' | 'both';

/** Figures of a device that passed its check. */
export interface DeviceCheck extends SelfCheck {
  /** Time of the start, in ms, in which the CPU computed what the device is compared with, or it was read. */
  readonly referenceMs: number;
}

export interface WorkerEngine {
  readonly bundle: Bundle;
  readonly session: DecoderSession;
  /** What its KV depends on besides the prompts. */
  readonly origin: KvOrigin;
  /** The model's name, as clients ask for it. */
  readonly modelName: string;
  readonly device: DeviceReport;
  /** Figures of the device's check; undefined on the CPU, which needs none. */
  readonly check: DeviceCheck | undefined;
  /** Resolves with the reason when the device fails again and again; undefined on the CPU. */
  readonly lost: Promise<ServingError> | undefined;
  /** Frees the graph, the KV caches and the device after the runs and copies that are under way. */
  dispose(): Promise<void>;
}

/**
 * @param files is told of the files that are loaded; what was loaded can be trusted when it has settled.
 * @throws ServingError bundle_invalid, config_invalid, out_of_memory, provider_unavailable, runtime_failed.
 */
export async function loadEngine(
  config: EngineConfig,
  work: EngineWork,
  log: Logger,
  files: FileGuard,
): Promise<WorkerEngine> {
  const started = performance.now();
  const cpus = config.cpus === '' ? undefined : parseCpus(config.cpus);
  if (cpus) pinProcess(cpus);
  const bundle = await openBundle(config.model, config);
  const { maxPositions } = bundle.manifest.llm;
  const capacity = config.capacity ?? Math.min(DEFAULT_CAPACITY, maxPositions);
  if (capacity > maxPositions) {
    throw new ServingError(
      'config_invalid',
      `--capacity ${capacity} exceeds the ${maxPositions} positions of ${config.model}: lower it, or leave it out`,
    );
  }
  const threads = Math.min(config.threads, cpus?.length ?? config.threads);
  const loader = new EngineLoader({ ...config, capacity, threads }, bundle, work, log, files);
  const { loaded, reason } = await loadOnDevice(config, log, (setting) => loader.loadOn(setting));
  const { engine, device, check } = loaded;
  if (config.graphCapture && !engine.session.recordsSteps) {
    const why = work === 'prefill' ? 'a prefill worker computes no decode steps' : `${device.name} records none`;
    log.warn({ device: device.name, why }, '--graph-capture true has no effect: no decode step is recorded');
  }
  const { pool } = engine.session;
  const size = { block_size: String(capacity), num_gpu_blocks: String(pool.slots), cache_dtype: pool.type };
  metrics.cacheConfig.set(size, 1);
  const report = { kind: device.kind, name: device.name, reason };
  const loadMs = Math.round(performance.now() - started);
  log.info({ model: bundle.manifest.name, load_ms: loadMs, device: report, check }, 'engine loaded');
  const part = work === 'prefill' ? promptPart(bundle.manifest, device.kind) : 'llm';
  const computer = device.kind === 'cpu' ? cpuFeatures() : device.name;
  const origin = {
    fingerprint: bundle.manifest.fingerprint,
    computedBy: `${part} by ONNX Runtime ${RUNTIME_VERSION} on ${device.kind}, ${computer}`,
  };
  return {
    bundle,
    session: engine.session,
    origin,
    modelName: config.servedName || bundle.manifest.name,
    device: report,
    check,
    lost: device.kind === 'cpu' ? undefined : device.health.lost,
    dispose: engine.dispose,
  };
}

/**
 * Computes with an engine on the CPU what devices are compared with, and keeps it beside the bundle's prepacked
 * weights, if it is not there yet. Slot 0 loses its content.
 * @param engine with the weights of `llm` and slots of at least 49 positions.
 * @param files see {@link loadEngine}.
 */
export async function keepReference(engine: WorkerEngine, log: Logger, files: FileGuard): Promise<void> {
  const kept = prepackedCache(engine.bundle, '', log, files);
  await keptReference(kept, CHECKED_ROWS * engine.session.vocabSize, () => referenceOf(engine.session));
}

interface OpenEngine {
  readonly session: DecoderSession;
  /** Frees all that was made for the engine, in the order in which it is used no more. */
  dispose(): Promise<void>;
}

/** Loads one bundle on devices, of which it keeps the last. */
class EngineLoader {
  readonly #config: EngineConfig & { readonly capacity: number };
  readonly #bundle: Bundle;
  readonly #work: EngineWork;
  readonly #log: Logger;
  readonly #files: FileGuard;
  /** Parts of the bundle that are verified or being verified. */
  readonly #served = new Set<string>();
  /** What the CPU computes in the check of a device: the same for all devices. */
  #reference: Promise<Float32Array> | undefined;

  constructor(
    config: EngineConfig & { readonly capacity: number },
    bundle: Bundle,
    work: EngineWork,
    log: Logger,
    files: FileGuard,
  ) {
    this.#config = config;
    this.#bundle = bundle;
    this.#work = work;
    this.#log = log;
    this.#files = files;
  }

  /** Loads, checks and warms the engine on a device. When it fails, nothing stays open. */
  async loadOn(
    setting: DeviceSetting,
  ): Promise<{ readonly engine: OpenEngine; readonly device: Device; readonly check: DeviceCheck | undefined }> {
    const { slots, capacity, deviceMemory } = this.#config;
    const { manifest } = this.#bundle;
    assertRunsOn(manifest, setting.provider);
    const part = this.#work === 'prefill' ? promptPart(manifest, setting.provider) : 'llm';
    const onCpu = setting.provider === 'cpu';
    // A device that computes both has one more slot, in which prompts are computed.
    const kvSlots = slots + (this.#work === 'both' && !onCpu ? 1 : 0);
    const stepRows = this.#work === 'prefill' ? 1 : kvSlots;
    const computesPrompts = this.#work !== 'decode';
    const runs = { tokens: this.#runTokens, stepRows, verified: onCpu && this.#verifies, computesPrompts };
    const need = engineMemory(manifest, part, kvSlots, capacity, runs);
    if (onCpu) assertFitsMachine(need, capacity);
    else if (deviceMemory !== undefined) assertFitsDevice(need, capacity, deviceMemory);
    if (!onCpu && capacity < CHECKED_POSITIONS) {
      throw new ServingError(
        'config_invalid',
        `--capacity ${capacity} is less than the ${CHECKED_POSITIONS} tokens with which a device is checked: ` +
          'raise it, or use --provider cpu',
      );
    }
    if (onCpu && manifest.kv !== undefined && this.#work === 'both' && this.#config.prepacked === 'off') {
      throw new ServingError(
        'config_invalid',
        `${manifest.name} has int8 KV, with which prompts and steps have a graph each, and --prepacked off would load ` +
          'the weights twice: leave --prepacked out, or name a folder',
      );
    }
    this.#serve(part);
    const device = await openDevice(setting);
    const kvOf = (): Promise<EngineKv> =>
      device.kind === 'cpu'
        ? openCpuKv(this.#bundle, slots, capacity, computesPrompts)
        : this.#deviceKv(device, kvLayoutOf(manifest));
    const { prepacked } = this.#config;
    const kept = device.kind === 'cpu' ? prepackedCache(this.#bundle, prepacked, this.#log, this.#files) : undefined;
    const engine = await this.#open(part, device, kvOf, kept).catch(async (error) => {
      await device.dispose();
      throw error;
    });
    try {
      const check = device.kind === 'cpu' ? undefined : await this.#check(engine.session, device);
      const warm = warmUp(engine.session, this.#work, check !== undefined);
      await (device.kind === 'cpu' ? warm : device.health.unlessLost(warm));
      if (this.#verifies) await this.#openVerifier(engine.session, kept);
      return { engine, device, check };
    } catch (error) {
      // Freeing would wait for a run that hangs.
      const freed = engine.dispose();
      if (device.kind !== 'cpu' && device.health.isLost) freed.catch(() => {});
      else await freed;
      throw error;
    }
  }

  /** Whether it is to have verify runs, where it can. */
  get #verifies(): boolean {
    return this.#config.speculation === 'auto' && this.#work !== 'prefill';
  }

  /** Tokens of the longest run: a step of all slots, or a chunk, which takes a last token of a prompt along. */
  get #runTokens(): number {
    const { slots, capacity, prefillChunkTokens } = this.#config;
    if (this.#work === 'decode') return Math.max(slots, CHECKED_POSITIONS);
    return Math.min(capacity, (prefillChunkTokens ?? DEFAULT_CHUNK_TOKENS) + 1);
  }

  #deviceKv(device: Accelerator, layout: KvLayout): Promise<DeviceKv> {
    const { slots, capacity } = this.#config;
    const use = { prefill: 'prompts', decode: 'steps', both: 'both' } as const;
    return DeviceKv.create(device, layout, slots, capacity, use[this.#work]);
  }

  /** Opens a session and its KV caches. The engine disposes of the device too. @param prepacked see SessionOptions. */
  async #open(
    part: 'llm' | 'prefill',
    device: Device,
    kvOf: () => Promise<EngineKv>,
    prepacked: SessionOptions['prepacked'],
  ): Promise<OpenEngine> {
    // Whose kernels a plugin has is known only when it is open.
    if (device.kind === 'plugin') assertRunsOn(this.#bundle.manifest, device.kernels);
    const { threads, spin, graphCapture } = this.#config;
    const { spec } = this.#bundle.manifest.llm;
    const shape = { vocabSize: spec.vocab, hiddenSize: spec.hidden };
    const memory = await kvOf();
    const session = await DecoderSession.load(this.#bundle[part], shape, new KvPool(memory), {
      device,
      threads,
      spin,
      graphCapture: graphCapture && this.#work !== 'prefill',
      decodes: this.#work !== 'prefill',
      prepacked,
    }).catch(async (error) => {
      await memory.dispose();
      throw error;
    });
    const dispose = async () => {
      await session.dispose();
      await session.pool.store.dispose(); // refuses the moves of KV that are still queued
      await device.dispose();
    };
    return { session, dispose };
  }

  /** Without verify runs a worker decodes one token after the other: that is no reason not to start. */
  async #openVerifier(session: DecoderSession, prepacked: SessionOptions['prepacked']): Promise<void> {
    const { threads, spin } = this.#config;
    const startMs = performance.now();
    const why = await session.openVerifier(this.#bundle.llm, { threads, spin, prepacked });
    const { verifier } = session;
    if (verifier === undefined) {
      this.#log.warn({ why }, '--speculation auto has no effect: tokens are decoded one at a time');
      return;
    }
    const round = (rows: number) => [rows, Math.round(verifier.costMs(rows) * 10) / 10];
    const ms = Object.fromEntries(verifier.rows.map(round));
    this.#log.info({ ms, load_ms: Math.round(performance.now() - startMs) }, 'verify runs are ready');
  }

  /** @throws ServingError provider_unavailable or out_of_memory for a device that does not compute right. */
  async #check(session: DecoderSession, device: Accelerator): Promise<DeviceCheck> {
    await device.health.unlessLost(assertKeepsKv(session.pool.memory, device.name));
    const kept = prepackedCache(this.#bundle, this.#config.prepacked, this.#log, this.#files);
    const count = CHECKED_ROWS * session.vocabSize;
    const startMs = performance.now();
    this.#reference ??= keptReference(kept, count, () => this.#computeReference(device.name));
    const reference = await this.#reference;
    const referenceMs = Math.round(performance.now() - startMs);
    try {
      const check = await device.health.unlessLost(this.#compare(session, reference, device.name));
      return { ...check, referenceMs };
    } catch (error) {
      // Such as a kernel that takes more bindings than the device has.
      if (!(error instanceof ServingError) || error.code !== 'runtime_failed') throw error;
      throw new ServingError(
        'provider_unavailable',
        `${device.name} fails in its check (${error.message.trim()}): ` +
          `lower --slots or --capacity, update its driver, or use --provider cpu`,
        { cause: error },
      );
    }
  }

  async #compare(session: DecoderSession, reference: Float32Array, device: string): Promise<SelfCheck> {
    const limits = limitsOf(this.#bundle.manifest.precision, this.#config.checkTolerance);
    const check = await assertComputesRight(session, reference, limits, device);
    if (this.#work !== 'prefill') await assertStepsRight(session, reference, limits, device);
    if (this.#work !== 'decode') await assertComputesLongChunks(session, this.#runTokens, limits, device);
    return check;
  }

  /**
   * The model is loaded on the CPU for a moment. Devices compute prompts and steps with the weights of `llm`.
   * @param checked name of the device that is checked, for errors.
   */
  async #computeReference(checked: string): Promise<Float32Array> {
    const { manifest } = this.#bundle;
    const need = engineMemory(manifest, 'llm', 1, CHECKED_POSITIONS);
    assertReferenceFits(need, checked, referenceName(manifest.fingerprint));
    const device = await openDevice({ provider: 'cpu' });
    const kvOf = () => openCpuKv(this.#bundle, 1, CHECKED_POSITIONS);
    // Prepacked weights would take as much of the disk as the model, for one prompt.
    const onCpu = await this.#open('llm', device, kvOf, undefined);
    try {
      return await referenceOf(onCpu.session);
    } finally {
      await onCpu.dispose();
    }
  }

  #serve(part: 'llm' | 'prefill'): void {
    if (this.#served.has(part)) return;
    this.#served.add(part);
    this.#files.serveFrom(this.#bundle.dir, filesOf(this.#bundle.manifest, [part]));
  }
}

/**
 * The first runs allocate memory and read every weight; on a device they compile its kernels. No request should wait
 * for that.
 * @param work what is run: what the worker computes.
 * @param checked whether the checks of a device have run prompts and steps already.
 */
async function warmUp(session: DecoderSession, work: EngineWork, checked: boolean): Promise<void> {
  await session.pool.memory.warmUp();
  if (checked) return;
  const ids = Int32Array.of(0, 0);
  if (work !== 'decode') await session.chunk({ slot: 0, past: 0, ids, soft: NO_SOFT_TOKENS, logitRows: [1] });
  if (work !== 'prefill') await session.step(Int32Array.of(0), Int32Array.of(2));
}

/** @param setting a folder; '' for the bundle's own, `off` for none. */
export function prepackedCache(
  bundle: Bundle,
  setting: string,
  log: Logger,
  files: FileGuard,
): SessionOptions['prepacked'] {
  if (setting === 'off') return undefined;
  return { dir: setting || join(bundle.dir, 'prepacked'), fingerprint: bundle.manifest.fingerprint, log, files };
}
