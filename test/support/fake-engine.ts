/**
 * An engine without a model, for tests of everything around it. Like the real one it keeps its memory only in a KV
 * pool: each position of a slot holds a number that names its token, in every row, and the next token is a function of
 * all of them. A cache that was damaged, cut, mixed up or read at the wrong length gives an error if the rows of a
 * position disagree, else other tokens than {@link continuation}.
 */
import type { StepEngine } from '../../services/decode/loop.ts';
import type { PromptChunk, Verifier } from '../../services/lib/engine/session.ts';
import { CpuKvStore } from '../../services/lib/kv/cpu-store.ts';
import { rowCount } from '../../services/lib/kv/layout.ts';
import { KvPool } from '../../services/lib/kv/pool.ts';
import type { KvStore } from '../../services/lib/kv/store.ts';
import type { FinishReason } from '../../services/lib/request/next-token.ts';
import type { TokenPrompt } from '../../services/lib/request/token-prompt.ts';
import type { PromptEngine } from '../../services/prefill/prompt-computation.ts';
import { row as rowOf } from './kv-rows.ts';

export const VOCAB = 29;
export const HIDDEN = 2;
export const LAYOUT = { layers: 2, kvHeads: 2, headDim: 3 };
/** The cache holds a soft token as this number plus the first element of its vector. */
const SOFT = 100;
/**
 * Written where nothing may be read: behind the content of slots without a sequence, and in a chunk until it is
 * computed.
 */
export const GARBAGE = 7777;

const cell = (token: number, row: number, element: number) => token * 64 + ((row * 5 + element) % 64);

/** The token after `tokens`. */
export function nextToken(tokens: readonly number[]): number {
  let hash = 2166136261;
  for (const token of tokens) hash = Math.imul(hash ^ token, 16777619) >>> 0;
  return (hash >>> 8) % VOCAB;
}

/** The numbers that the cache holds for a prompt's positions. */
export function tokensOf({ ids, soft }: TokenPrompt): number[] {
  const tokens = [...ids];
  for (const [i, position] of soft.positions.entries()) tokens[position] = SOFT + (soft.vectors[i * HIDDEN] as number);
  return tokens;
}

/** The output that a prompt gets when it is alone, first token included. */
export function continuation(
  prompt: readonly number[],
  maxTokens: number,
  stopTokenIds: readonly number[] = [],
): { tokens: number[]; finishReason: FinishReason } {
  const tokens: number[] = [];
  while (tokens.length < maxTokens) {
    const next = nextToken([...prompt, ...tokens]);
    tokens.push(next);
    if (stopTokenIds.includes(next)) return { tokens, finishReason: 'stop' };
  }
  return { tokens, finishReason: 'length' };
}

export class FakeEngine implements PromptEngine, StepEngine {
  readonly pool: KvPool;
  /** Where the caches really lie. */
  readonly memory: CpuKvStore;
  readonly vocabSize = VOCAB;
  readonly hiddenSize = HIDDEN;
  readonly overdueMs = 0;
  /** Whether it chooses tokens itself, as an engine on a device does. */
  picksTokens = false;
  /** Number of steps in which it chose them. */
  picks = 0;
  /** What verify runs cost; see {@link speculates}. */
  verifier: Verifier | undefined;
  /** The slot and the rows of each verify run. */
  readonly verified: { readonly slot: number; readonly rows: number }[] = [];
  readonly chunks: PromptChunk[] = [];
  /** The slots that each step decoded. */
  readonly steps: number[][] = [];
  /** Runs before a chunk is computed; may wait or throw. An abort ends the chunk there. */
  beforeChunk: (chunk: PromptChunk) => Promise<void> | void = () => {};
  /** Runs before a step is computed; may wait or throw. */
  beforeStep: (slots: readonly number[]) => Promise<void> | void = () => {};
  #busy = false;

  /** @param reached puts something between the memory and all who use it but the engine's own runs. */
  constructor(
    slots = 2,
    capacity = 32,
    layout = LAYOUT,
    reached: (memory: CpuKvStore) => KvStore = (memory) => memory,
  ) {
    this.memory = new CpuKvStore(layout, slots, capacity);
    this.pool = new KvPool(reached(this.memory));
  }

  /** Gives it verify runs. @param costs ms of a run by its rows, 1 for a step. */
  speculates(costs: Readonly<Record<number, number>>): this {
    this.verifier = {
      rows: Object.keys(costs).map(Number),
      costMs: (rows) => costs[rows] ?? Infinity,
      verify: (slot, past, ids) => this.#verify(slot, past, ids),
    };
    return this;
  }

  #verify(slot: number, past: number, ids: Int32Array): Promise<Float32Array> {
    return this.#alone(async () => {
      this.verified.push({ slot, rows: ids.length });
      await this.beforeStep([slot]);
      const logits = new Float32Array(ids.length * VOCAB);
      for (const [row, id] of ids.entries()) {
        this.write(slot, past + row, [id]);
        logits[row * VOCAB + nextToken(this.read(slot, past + row + 1))] = 1;
      }
      return logits;
    });
  }

  async chunk(chunk: PromptChunk, signal?: AbortSignal): Promise<Float32Array> {
    return this.#alone(async () => {
      this.chunks.push(chunk);
      if (chunk.copyFrom !== undefined) await this.pool.store.copy(chunk.copyFrom, chunk.slot, chunk.past);
      this.write(chunk.slot, chunk.past, new Array(chunk.ids.length).fill(GARBAGE));
      await unlessAborted(this.beforeChunk(chunk), signal);
      this.write(chunk.slot, chunk.past, tokensOf(chunk));
      const logits = new Float32Array(chunk.logitRows.length * VOCAB);
      for (const [i, row] of chunk.logitRows.entries()) {
        logits[i * VOCAB + nextToken(this.read(chunk.slot, chunk.past + row + 1))] = 1;
      }
      return logits;
    });
  }

  async step(ids: Int32Array, lengths: Int32Array, first = 0): Promise<Float32Array> {
    return this.#alone(async () => {
      const rows = [...ids.keys()].filter((row) => (ids[row] as number) >= 0);
      const riders = [...ids.keys()].filter((row) => (ids[row] as number) < 0);
      const slots = rows.map((row) => first + row);
      // A real run may write at any time: write before and after the wait.
      const writeRiders = () => {
        for (const row of riders) this.write(first + row, lengths[row] as number, [GARBAGE]);
      };
      this.steps.push(slots);
      writeRiders();
      await this.beforeStep(slots);
      writeRiders();
      const logits = new Float32Array(ids.length * VOCAB);
      for (const row of rows) {
        const length = lengths[row] as number;
        this.write(first + row, length, [ids[row] as number]);
        logits[row * VOCAB + nextToken(this.read(first + row, length + 1))] = 1;
      }
      return logits;
    });
  }

  async pick(ids: Int32Array, lengths: Int32Array, first = 0): Promise<Int32Array> {
    this.picks++;
    const logits = await this.step(ids, lengths, first);
    return Int32Array.from(ids, (_, row) => logits.subarray(row * VOCAB, (row + 1) * VOCAB).indexOf(1));
  }

  /** The memory of positions [start, end) of one row of a slot. */
  row(slot: number, row: number, start: number, end: number): Float32Array {
    return rowOf(this.memory, slot, row, start, end);
  }

  /** Puts tokens into a slot from a position on. */
  write(slot: number, position: number, tokens: readonly number[]): void {
    for (let row = 0; row < rowCount(this.pool.layout); row++) {
      const view = this.row(slot, row, position, position + tokens.length);
      for (let i = 0; i < view.length; i++) {
        const { headDim } = this.pool.layout;
        view[i] = cell(tokens[Math.floor(i / headDim)] as number, row, i % headDim);
      }
    }
  }

  /** The tokens of positions [0, length) of a slot. */
  read(slot: number, length: number): number[] {
    const { headDim } = this.pool.layout;
    const first = this.row(slot, 0, 0, length);
    const tokens = Array.from({ length }, (_, position) => Math.floor((first[position * headDim] as number) / 64));
    for (let row = 0; row < rowCount(this.pool.layout); row++) {
      const view = this.row(slot, row, 0, length);
      for (let i = 0; i < view.length; i++) {
        if (view[i] !== cell(tokens[Math.floor(i / headDim)] as number, row, i % headDim)) {
          throw new Error(`slot ${slot}, row ${row}, element ${i} is ${view[i]}: not what was written`);
        }
      }
    }
    return tokens;
  }

  async #alone<T>(run: () => Promise<T>): Promise<T> {
    if (this.#busy) throw new Error('two runs of the graph at once');
    this.#busy = true;
    try {
      return await run();
    } finally {
      this.#busy = false;
    }
  }
}

/** Waits for `work` or the abort, whichever comes first. */
function unlessAborted(work: Promise<void> | void, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal?.reason);
    if (signal?.aborted) abort();
    signal?.addEventListener('abort', abort, { once: true });
    void Promise.resolve(work)
      .then(resolve, reject)
      .finally(() => signal?.removeEventListener('abort', abort));
  });
}

/** A promise that a test resolves. */
export function gate(): { readonly opened: Promise<void>; open(): void } {
  let open!: () => void;
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { opened, open };
}

/** Waits until everything has happened that only waits for the event loop. */
export const settle = () => new Promise<void>((resolve) => setImmediate(resolve));

/** Runs the event loop until the condition holds. The test's own timeout is the limit. */
export async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await holds())) await settle();
}
