/** The process that holds the device and measures on request: an engine loaded as a worker loads it, or bare graphs. */
import { type DeviceReport, loadOnDevice } from '../../services/lib/engine/choose-device.ts';
import { openDevice } from '../../services/lib/engine/device.ts';
import { type DeviceCheck, loadEngine, type WorkerEngine } from '../../services/lib/engine/load.ts';
import { engineMemory } from '../../services/lib/engine/memory.ts';
import { OutputHistory, sample } from '../../services/lib/engine/sampler.ts';
import { ENGINE_SETTINGS } from '../../services/lib/engine/settings.ts';
import { KvReceiver, KvSender } from '../../services/lib/kv/handoff.ts';
import type { WireType } from '../../services/lib/kv/wire.ts';
import { floatsOf } from '../../services/lib/model/bundle/bundle.ts';
import { FileGuard } from '../../services/lib/model/bundle/integrity.ts';
import { readConfig } from '../../services/lib/process/config.ts';
import { createLogger } from '../../services/lib/process/log.ts';
import { GREEDY } from '../../services/lib/request/next-token.ts';
import { NO_SOFT_TOKENS } from '../../services/lib/request/token-prompt.ts';
import { memoryOf } from '../engine/memory.ts';
import { EngineSubject, promptIds } from '../engine/subject.ts';
import { serveTasks } from '../harness/task-process.ts';
import { measureRoofline, type Roofline } from './roofline.ts';

export interface EngineOptions {
  readonly provider: string;
  /** Folder of the bundle. */
  readonly model: string;
  readonly slots: number;
  readonly capacity: number;
  /** Record steps and replay them, where the provider can. */
  readonly graphCapture?: boolean;
}

export type Task =
  | { readonly do: 'roofline'; readonly provider: string; readonly copy: number; readonly product: number }
  | { readonly do: 'open'; readonly options: EngineOptions }
  | { readonly do: 'continue'; readonly prompt: number; readonly tokens: number; readonly rows: boolean }
  | { readonly do: 'prefill'; readonly tokens: number; readonly chunk: number }
  | {
      readonly do: 'decode';
      readonly batch: number;
      readonly context: number;
      readonly steps: number;
      readonly pick?: boolean;
    }
  | { readonly do: 'handoff'; readonly positions: number; readonly type: WireType }
  | { readonly do: 'memory' };

/** Answer to `open`. */
export interface Opened {
  readonly loadMs: number;
  readonly device: DeviceReport;
  /** Undefined on the CPU. */
  readonly check: DeviceCheck | undefined;
  /** Whether greedy tokens can be chosen on the device. */
  readonly picks: boolean;
  /** Bytes of the weights that both phases read on this device. */
  readonly weightBytes: number;
  /** Bytes of one position in the KV pool. */
  readonly positionBytes: number;
  /** Multiplications and additions of one token in all matrices, without attention. */
  readonly tokenFlops: number;
  /** The type of the KV caches. */
  readonly floats: 'float32' | 'float16';
}

/** Answer to `continue`: greedy tokens after a prompt, and the logits `[prompt + 1, vocab]` if they were asked for. */
export interface Continued {
  readonly tokens: readonly number[];
  readonly vocab: number;
  readonly rows: Float32Array;
}

/** Answer to `handoff`, in ms, for all positions. */
export interface HandedOver {
  readonly bytes: number;
  readonly packMs: number;
  readonly takeMs: number;
}

const QUIET = createLogger('bench', 'silent');

let engine: { readonly loaded: WorkerEngine; readonly subject: EngineSubject } | undefined;

function current(): NonNullable<typeof engine> {
  if (engine === undefined) throw new Error('no model is loaded: the first task must be open');
  return engine;
}

async function perform(task: Task): Promise<unknown> {
  switch (task.do) {
    case 'memory':
      return memoryOf();
    case 'roofline':
      return roofline(task);
    case 'open':
      return open(task.options);
    case 'continue':
      return continued(task);
    case 'prefill':
      return current().subject.prefill(task.tokens, task.chunk);
    case 'decode':
      return current().subject.decode(task.batch, task.context, task.steps, task.pick);
    case 'handoff':
      return handedOver(task);
  }
}

const configOf = (flags: Readonly<Record<string, unknown>>) =>
  readConfig(ENGINE_SETTINGS, { flags, env: {}, known: ENGINE_SETTINGS });

async function roofline({ provider, copy, product }: Extract<Task, { do: 'roofline' }>): Promise<Roofline> {
  const config = configOf({ provider, model: 'none' });
  const { loaded } = await loadOnDevice(config, QUIET, async (setting) => {
    const device = await openDevice(setting);
    try {
      // The CPU has no kernels for 16-bit products.
      const floats = device.kind === 'cpu' ? (['float32'] as const) : (['float32', 'float16'] as const);
      return await measureRoofline({ device, threads: config.threads }, { copy, product }, floats);
    } finally {
      await device.dispose();
    }
  });
  return loaded;
}

async function open(options: EngineOptions): Promise<Opened> {
  const startMs = performance.now();
  const loaded = await loadEngine(configOf({ ...options }), 'both', QUIET, new FileGuard(QUIET));
  const loadMs = performance.now() - startMs;
  engine = { loaded, subject: EngineSubject.of(loaded.session, loadMs) };
  const { manifest } = loaded.bundle;
  const { layers, hidden, heads, kvHeads, headDim, intermediate, vocab } = manifest.llm.spec;
  const { weights, perToken } = engineMemory(manifest, 'llm', options.slots, options.capacity);
  const attention = hidden * headDim * (2 * heads + 2 * kvHeads);
  return {
    loadMs,
    device: loaded.device,
    check: loaded.check,
    picks: loaded.session.picksTokens,
    weightBytes: weights,
    positionBytes: perToken,
    floats: floatsOf(manifest),
    tokenFlops: 2 * (layers * (attention + 3 * hidden * intermediate) + hidden * vocab),
  };
}

/** Greedy tokens after a prompt in one chunk; with `rows`, the logits of every position of the prompt and of a step. */
async function continued({ prompt, tokens, rows }: Extract<Task, { do: 'continue' }>): Promise<Continued> {
  const { session } = current().loaded;
  const vocab = session.vocabSize;
  const all = Array.from({ length: prompt }, (_, i) => i);
  const first = await session.chunk({
    slot: 0,
    past: 0,
    ids: promptIds(prompt, vocab),
    soft: NO_SOFT_TOKENS,
    logitRows: rows ? all : [prompt - 1],
  });
  const history = new OutputHistory();
  const found = [sample(first.subarray(first.length - vocab), GREEDY, 0, history).id];
  const kept = new Float32Array(rows ? (prompt + 1) * vocab : 0);
  if (rows) kept.set(first);
  for (let i = 1; i < tokens; i++) {
    const logits = await session.step(Int32Array.of(found.at(-1)!), Int32Array.of(prompt + i - 1));
    if (rows && i === 1) kept.set(logits, prompt * vocab);
    found.push(sample(logits, GREEDY, i, history).id);
  }
  return { tokens: found, vocab, rows: kept };
}

/** Packs the KV of one slot and takes it into another one, frame by frame, as two workers do, but without a network. */
async function handedOver({ positions, type }: Extract<Task, { do: 'handoff' }>): Promise<HandedOver> {
  const { loaded, subject } = current();
  await subject.fill(1, positions);
  const { memory } = loaded.session.pool;
  const sender = new KvSender(memory, 0, type);
  const receiver = new KvReceiver(memory, 1, '', type);
  receiver.manifest({ fingerprint: '', layout: memory.layout, dtype: type, positions });
  let [packMs, takeMs] = [0, 0];
  let startMs = performance.now();
  for await (const frame of sender.pack(0, positions)) {
    const packedMs = performance.now();
    await receiver.rows(frame);
    const takenMs = performance.now();
    packMs += packedMs - startMs;
    takeMs += takenMs - packedMs;
    startMs = takenMs;
  }
  receiver.end(sender.end([0]));
  return { bytes: receiver.bytes, packMs, takeMs };
}

serveTasks(perform);
