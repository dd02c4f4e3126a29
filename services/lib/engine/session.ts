/**
 * The decoder graph over the KV pool: one prompt chunk on one slot, or one decode step over slots [0, n). Both write
 * their keys and values in place; nothing is allocated or copied per step. One run at a time.
 */

import type { KvPool } from '../kv/pool.ts';
import { ServingError } from '../process/errors.ts';
import type { SoftTokens } from '../request/token-prompt.ts';
import { type Binding, OrtSession, OrtValue, type SessionOptions } from './ort.ts';

/** What the session must know of the model. */
export interface DecoderShape {
  readonly vocabSize: number;
  readonly hiddenSize: number;
}

/** In place of a token id: a slot between others that has no sequence. */
export const NO_TOKEN = -1;

export interface PromptChunk {
  readonly slot: number;
  /** Positions of the slot that are already filled: this chunk is [past, past + ids.length). */
  readonly past: number;
  readonly ids: Int32Array;
  /** Positions relative to the chunk. */
  readonly soft: SoftTokens;
  /** Positions, relative to the chunk, whose logits are wanted; none for all but a prompt's last chunk. */
  readonly logitRows: readonly number[];
  /** Slot to copy positions [0, past) from, first. */
  readonly copyFrom?: number;
}

interface StepBinding {
  readonly binding: Binding;
  /** [n, 1] */
  readonly ids: BigInt64Array;
  /** [n], positions filled before this step. */
  readonly lengths: Int32Array;
  /** Scalar: the longest row's length with this step's token. */
  readonly total: Int32Array;
}

/** A run may take so many times what the slowest ones lately took: later chunks of a prompt take longer. */
const PATIENCE = 4;
/** Runs of fewer tokens take about the same time each, longer ones about the same time per token. */
const SHORT_RUN = 64;
/** Per run: one that was slow since the machine stood still is forgotten. */
const FADING = 0.99;

export class DecoderSession {
  readonly pool: KvPool;
  readonly #session: OrtSession;
  readonly #shape: DecoderShape;
  readonly #slots = new Map<number, Binding>();
  /** By `first * (slots + 1) + n`. */
  readonly #steps = new Map<number, StepBinding>();
  readonly #stepLogits: Float32Array;
  /** What the step and slot bindings keep bound. */
  readonly #bound: OrtValue[] = [];
  #underWay: Promise<void> = Promise.resolve();
  #running: { readonly startedMs: number; readonly tokens: number } | undefined;
  /** Of the slowest short run lately. */
  #msPerShortRun = 0;
  /** Of the slowest long run lately; 0 before there was one. */
  #msPerToken = 0;
  #closed = false;

  private constructor(session: OrtSession, shape: DecoderShape, pool: KvPool) {
    this.#session = session;
    this.#shape = shape;
    this.pool = pool;
    this.#stepLogits = float32(pool.slots * shape.vocabSize);
  }

  get vocabSize(): number {
    return this.#shape.vocabSize;
  }

  get hiddenSize(): number {
    return this.#shape.hiddenSize;
  }

  /** By how much the run under way is overdue, in ms: above 0 for an engine that may never answer again. */
  get overdueMs(): number {
    if (this.#running === undefined) return 0;
    const { startedMs, tokens } = this.#running;
    // Where no long run is known, no token of one takes longer than a short run.
    const usualMs = this.#msPerShortRun + tokens * (this.#msPerToken || this.#msPerShortRun);
    return Math.max(0, performance.now() - startedMs - PATIENCE * usualMs);
  }

  /** @param graph path of the decoder's model.onnx. */
  static async load(
    graph: string,
    shape: DecoderShape,
    pool: KvPool,
    options: SessionOptions,
  ): Promise<DecoderSession> {
    return new DecoderSession(await OrtSession.load(graph, options), shape, pool);
  }

  /**
   * Computes one chunk of a prompt.
   * @returns logits [logitRows, vocab].
   * @throws ServingError context_length_exceeded when the chunk does not fit the slot, draining after {@link dispose};
   *   the signal's reason.
   */
  async chunk(chunk: PromptChunk, signal?: AbortSignal): Promise<Float32Array> {
    this.#assertOpen();
    const { ids, past, soft, logitRows } = chunk;
    const end = past + ids.length;
    if (end > this.pool.capacity) {
      throw new ServingError(
        'context_length_exceeded',
        `the prompt reaches ${end} tokens, a slot holds ${this.pool.capacity}`,
      );
    }
    const { vocabSize, hiddenSize } = this.#shape;
    const logits = float32(logitRows.length * vocabSize);
    const made: OrtValue[] = [];
    const value = (...tensor: ConstructorParameters<typeof OrtValue>) => {
      const created = new OrtValue(...tensor);
      made.push(created);
      return created;
    };
    const binding = this.#slotBinding(chunk.slot);
    if (chunk.copyFrom !== undefined) this.pool.copy(chunk.copyFrom, chunk.slot, past);
    try {
      const vectors = float32(soft.vectors.length);
      vectors.set(soft.vectors);
      binding
        .input('input_ids', value({ type: 'int64', dims: [1, ids.length], data: int64(ids) }))
        .input('soft_tokens', value({ type: 'float32', dims: [soft.positions.length, hiddenSize], data: vectors }))
        .input('soft_positions', value({ type: 'int64', dims: [soft.positions.length], data: int64(soft.positions) }))
        .input('logit_rows', value({ type: 'int64', dims: [logitRows.length], data: int64(logitRows) }))
        .input('seqlens_k', value({ type: 'int32', dims: [1], data: int32(1).fill(end - 1) }))
        .input('total_sequence_length', value({ type: 'int32', dims: [], data: int32(1).fill(end) }))
        .output('logits', value({ type: 'float32', dims: [1, logitRows.length, vocabSize], data: logits }));
      await this.#run(binding, ids.length, signal);
      return logits;
    } finally {
      for (const created of made) created.dispose();
      binding.forgetDisposed(); // the logits of 64 positions are 39 MB at a vocabulary of 152k, per slot
    }
  }

  /**
   * One token for each of slots [first, first + n).
   * @param ids [n] the newest token of each sequence, not yet in its KV; NO_TOKEN for a slot that only rides along.
   * @param lengths [n] positions filled so far; position `lengths[slot]` is written, also of those that ride along.
   * @returns logits [n, vocab], valid until the next step.
   */
  async step(ids: Int32Array, lengths: Int32Array, first = 0): Promise<Float32Array> {
    this.#assertOpen();
    const n = ids.length;
    const step = this.#stepBinding(first, n);
    let longest = 0;
    for (let i = 0; i < n; i++) {
      const length = lengths[i] as number;
      step.ids[i] = BigInt(Math.max(0, ids[i] as number)); // what a slot without a sequence computes is not read
      step.lengths[i] = length;
      longest = Math.max(longest, length + 1);
    }
    if (longest > this.pool.capacity) {
      throw new ServingError(
        'context_length_exceeded',
        `a sequence reaches ${longest} tokens, a slot holds ${this.pool.capacity}`,
      );
    }
    step.total[0] = longest;
    await this.#run(step.binding, n);
    return this.#stepLogits.subarray(0, n * this.#shape.vocabSize);
  }

  /** Takes no more runs; frees the graph when the one under way is over, since it still uses it. */
  async dispose(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#underWay.catch(() => {});
    for (const binding of this.#slots.values()) binding.dispose();
    for (const { binding } of this.#steps.values()) binding.dispose();
    for (const value of this.#bound) value.dispose();
    this.#session.dispose();
  }

  /** Before anything is bound: after {@link dispose} the bindings point nowhere. */
  #assertOpen(): void {
    if (this.#closed) throw new ServingError('draining', 'the engine is shut down');
  }

  async #run(binding: Binding, tokens: number, signal?: AbortSignal): Promise<void> {
    const startedMs = performance.now();
    this.#running = { startedMs, tokens };
    this.#underWay = binding.run(signal);
    try {
      await this.#underWay;
    } finally {
      this.#running = undefined;
      const tookMs = performance.now() - startedMs;
      if (tokens < SHORT_RUN) this.#msPerShortRun = Math.max(this.#msPerShortRun * FADING, tookMs);
      else this.#msPerToken = Math.max(this.#msPerToken * FADING, tookMs / tokens);
    }
  }

  #fixed(...tensor: ConstructorParameters<typeof OrtValue>): OrtValue {
    const value = new OrtValue(...tensor);
    this.#bound.push(value);
    return value;
  }

  /** A binding whose past and present KV are one slot's memory. */
  #slotBinding(slot: number): Binding {
    let binding = this.#slots.get(slot);
    if (binding === undefined) {
      binding = this.#session.bind();
      this.#bindKv(binding, slot, 1);
      this.#slots.set(slot, binding);
    }
    return binding;
  }

  #stepBinding(first: number, n: number): StepBinding {
    const key = first * (this.pool.slots + 1) + n;
    let step = this.#steps.get(key);
    if (step === undefined) {
      const { vocabSize, hiddenSize } = this.#shape;
      const ids = new BigInt64Array(new ArrayBuffer(n * 8));
      const lengths = int32(n);
      const total = int32(1);
      const binding = this.#session
        .bind()
        .input('input_ids', this.#fixed({ type: 'int64', dims: [n, 1], data: ids }))
        .input('soft_tokens', this.#fixed({ type: 'float32', dims: [0, hiddenSize], data: float32(0) }))
        .input('soft_positions', this.#fixed({ type: 'int64', dims: [0], data: int64([]) }))
        .input('logit_rows', this.#fixed({ type: 'int64', dims: [1], data: int64([0]) }))
        // seqlens_k is total - 1 of each row: with one new token, the positions filled so far.
        .input('seqlens_k', this.#fixed({ type: 'int32', dims: [n], data: lengths }))
        .input('total_sequence_length', this.#fixed({ type: 'int32', dims: [], data: total }))
        .output('logits', this.#fixed({ type: 'float32', dims: [n, 1, vocabSize], data: this.#stepLogits }));
      this.#bindKv(binding, first, n);
      step = { binding, ids, lengths, total };
      this.#steps.set(key, step);
    }
    return step;
  }

  /** Slots [first, first + n) as past and, at the same address, present: the runtime then appends in place. */
  #bindKv(binding: Binding, first: number, n: number): void {
    const { kvHeads, headDim } = this.pool.layout;
    const dims = [n, kvHeads, this.pool.capacity, headDim];
    const slotElements = kvHeads * this.pool.capacity * headDim;
    for (const [i, layer] of this.pool.layers.entries()) {
      for (const part of ['key', 'value'] as const) {
        const data = layer[part].subarray(first * slotElements, (first + n) * slotElements);
        const kv = this.#fixed({ type: this.pool.floats, dims, data });
        binding.input(`past.${i}.${part}`, kv).output(`present.${i}.${part}`, kv);
      }
    }
  }
}

// Memory that V8 will not move, whatever its size; never empty, since an empty one has no address.
const bytes = (count: number) => new ArrayBuffer(Math.max(count, 8));
const float32 = (n: number) => new Float32Array(bytes(n * 4), 0, n);
const int32 = (n: number) => new Int32Array(bytes(n * 4), 0, n);
function int64(values: ArrayLike<number>): BigInt64Array {
  const out = new BigInt64Array(bytes(values.length * 8), 0, values.length);
  for (let i = 0; i < values.length; i++) out[i] = BigInt(values[i] as number);
  return out;
}
