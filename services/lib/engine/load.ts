/**
 * Makes a worker's engine from its settings: bundle, KV pool, decoder. It is warm before the worker says it is ready.
 */
import { totalmem } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { positionBytes } from '../kv/layout.ts';
import { KvPool } from '../kv/pool.ts';
import { allFiles, type Bundle, filesOf, floatsOf, openBundle } from '../model/bundle/bundle.ts';
import type { FileGuard } from '../model/bundle/integrity.ts';
import type { ConfigOf } from '../process/config.ts';
import { parseCpus } from '../process/cpus.ts';
import { ServingError } from '../process/errors.ts';
import type { Logger } from '../process/log.ts';
import { NO_SOFT_TOKENS } from '../request/token-prompt.ts';
import { CpuEngineKv } from './engine-kv.ts';
import type { SessionOptions } from './ort.ts';
import { pinProcess } from './ort-affinity.ts';
import { DecoderSession } from './session.ts';
import { DEFAULT_CAPACITY, type ENGINE_SETTINGS } from './settings.ts';

export type EngineConfig = ConfigOf<typeof ENGINE_SETTINGS>;

export interface WorkerEngine {
  readonly bundle: Bundle;
  readonly session: DecoderSession;
  /** The model's name, as clients ask for it. */
  readonly modelName: string;
  /** Frees the graph and the KV caches after the runs and copies that are under way. */
  dispose(): Promise<void>;
}

/**
 * @param phase prompts may have weights of their own: says which weights to load.
 * @param files is told of the files that are loaded; what was loaded can be trusted when it has settled.
 * @throws ServingError bundle_invalid, config_invalid, out_of_memory, provider_unavailable, runtime_failed.
 */
export async function loadEngine(
  config: EngineConfig,
  phase: 'prefill' | 'decode',
  log: Logger,
  files: FileGuard,
): Promise<WorkerEngine> {
  if (config.provider === 'cuda')
    throw new ServingError(
      'provider_unavailable',
      '--provider cuda is refused: this version would compute with stale inputs on a GPU and answer with wrong tokens',
    );
  const started = performance.now();
  const cpus = config.cpus === '' ? undefined : parseCpus(config.cpus);
  if (cpus) pinProcess(cpus);
  const bundle = await openBundle(config.model);
  files.serveFrom(bundle.dir, filesOf(bundle.manifest, [phase === 'prefill' ? 'prefill' : 'llm']));
  const { spec, maxPositions } = bundle.manifest.llm;
  const capacity = config.capacity ?? Math.min(DEFAULT_CAPACITY, maxPositions);
  if (capacity > maxPositions) {
    throw new ServingError(
      'config_invalid',
      `--capacity ${capacity} exceeds the ${maxPositions} positions of ${config.model}: lower it, or leave it out`,
    );
  }
  const graph = phase === 'prefill' ? bundle.prefill : bundle.llm;
  assertFitsMemory(bundle, graph, config.slots, capacity);
  const { layers, kvHeads, headDim } = spec;
  const floats = floatsOf(bundle.manifest);
  const pool = new KvPool(new CpuEngineKv({ layers, kvHeads, headDim, floats }, config.slots, capacity));
  const shape = { vocabSize: spec.vocab, hiddenSize: spec.hidden };
  const session = await DecoderSession.load(graph, shape, pool, {
    threads: Math.min(config.threads, cpus?.length ?? config.threads),
    spin: config.spin,
    prepacked: prepackedCache(bundle, config.prepacked, log, files),
  });
  const loaded = performance.now();
  // The first runs allocate memory and read every weight. No request should wait for that.
  await session.chunk({ slot: 0, past: 0, ids: Int32Array.of(0, 0), soft: NO_SOFT_TOKENS, logitRows: [1] });
  await session.step(Int32Array.of(0), Int32Array.of(2));
  const warm = performance.now();
  log.info({ model: bundle.manifest.name, load_ms: loaded - started, warm_ms: warm - loaded }, 'engine loaded');
  const dispose = async () => {
    await session.dispose();
    await pool.store.dispose();
  };
  return { bundle, session, modelName: config.servedName || bundle.manifest.name, dispose };
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

/** Checked before gigabytes are read. Without the check the kernel would kill the process later, under load. */
function assertFitsMemory(bundle: Bundle, graph: string, slots: number, capacity: number): void {
  const folder = `${relative(bundle.dir, dirname(graph))}/`;
  const files = allFiles(bundle.manifest).filter(({ path }) => path.startsWith(folder));
  const weights = files.reduce((sum, { bytes }) => sum + bytes, 0);
  const { spec } = bundle.manifest.llm;
  const perToken = positionBytes({ ...spec, floats: floatsOf(bundle.manifest) });
  const kv = perToken * capacity * slots;
  const logits = spec.vocab * 4 * slots;
  const available = Math.min(totalmem(), process.constrainedMemory() || Number.POSITIVE_INFINITY);
  if (weights + kv + logits <= available) return;
  throw new ServingError(
    'out_of_memory',
    `the weights take ${gib(weights)}, the KV pool ${slots} slots x ${capacity} tokens x ${perToken} bytes = ${gib(kv)}, logits ${slots} slots x ${spec.vocab} ids x 4 bytes = ${gib(logits)}; the machine has ${gib(available)}; lower --slots or --capacity`,
  );
}

const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
