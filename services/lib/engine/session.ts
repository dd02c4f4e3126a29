/**
 * The decoder graph over the KV pool: one run is a prompt chunk on one slot, or a decode step over adjacent slots. Both
 * write keys and values in place; a step allocates and copies nothing. Only one run at a time is allowed.
 */
import type { KvPool } from '../kv/pool.ts';
import { ServingError } from '../process/errors.ts';
import type { SoftTokens } from '../request/token-prompt.ts';
import { type Binding, OrtSession, OrtValue, type SessionOptions } from './ort.ts';

/** The dimensions of the model that the session needs. */
export interface DecoderShape {
  readonly vocabSize: number;
  readonly hiddenSize: number;
}

/** Stands for the token id of a slot within a step that has no sequence. */
export const NO_TOKEN = -1;

export interface PromptChunk {
  readonly slot: number;
  /** Positions of the slot that are filled already. The chunk fills [past, past + ids.length). */
  readonly past: number;
  readonly ids: Int32Array;
  /** Soft tokens with positions relative to the chunk. */
  readonly soft: SoftTokens;
  /** Positions, relative to the chunk, whose logits are wanted. Usually only a prompt's last chunk has any. */
  readonly logitRows: readonly number[];
  /** Slot to copy positions [0, past) from before the run. */
  readonly copyFrom?: number;
}

interface StepBinding {
  readonly binding: Binding;
  /** `[n, 1]` */
  readonly ids: BigInt64Array;
  /** `[n]`, positions filled before this step. */
  readonly lengths: Int32Array;
  /** `[1]`, length of the longest row with this step's token. */
  readonly total: Int32Array;
}

/**
 * A run is overdue after this multiple of what the slowest recent runs took. (Later chunks of a prompt take longer.)
 */
const PATIENCE = 4;
/** Runs of fewer tokens take about the same time each; longer ones take about the same time per token. */
const SHORT_RUN = 64;
/** Factor per run by which measured maxima shrink, so that a run that was slow because of the machine is forgotten. */
const FADING = 0.99;

export class DecoderSession {
  readonly pool: KvPool;
  readonly #session: OrtSession;
  readonly #shape: DecoderShape;
  readonly #slots = new Map<number, Binding>();
  /** By `first * (slots + 1) + n`; see step(). */
  readonly #steps = new Map<number, StepBinding>();
  readonly #stepLogits: Float32Array;
  /** Values that the step and slot bindings keep bound. */
  readonly #bound: OrtValue[] = [];
  #currentRun: Promise<void> = Promise.resolve();
  #runStart: { readonly startedMs: number; readonly tokens: number } | undefined;
  /** Duration of the slowest recent short run. */
  #msPerShortRun = 0;
  /** The most that a recent long run took per token; 0 before there was one. */
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

  /** Time by which the current run is overdue, in ms. If it is above 0, the engine may never answer again. */
  get overdueMs(): number {
    if (this.#runStart === undefined) return 0;
    const { startedMs, tokens } = this.#runStart;
    // Before the first long run: a token of a long run takes no longer than a whole short run.
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
   * @returns logits `[logitRows, vocab]`.
   * @throws ServingError context_length_exceeded if the chunk does not fit the slot, draining after {@link dispose};
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
        .input(
          'soft_positions',
          value({ type: 'int64', dims: [soft.positions.length, 2], data: places(soft.positions) }),
        )
        .input('logit_rows', value({ type: 'int64', dims: [logitRows.length], data: int64(logitRows) }))
        .input('seqlens_k', value({ type: 'int32', dims: [1], data: int32(1).fill(end - 1) }))
        .input('total_sequence_length', value({ type: 'int32', dims: [], data: int32(1).fill(end) }))
        .output('logits', value({ type: 'float32', dims: [logitRows.length, vocabSize], data: logits }));
      await this.#run(binding, ids.length, signal);
      return logits;
    } finally {
      for (const created of made) created.dispose();
      binding.forgetDisposed(); // the logits of 64 positions are 39 MB at a vocabulary of 152k, per slot
    }
  }

  /**
   * Decodes one token for each of slots [first, first + n).
   * @param ids `[n]`, the newest token of each sequence, which its KV does not hold yet; NO_TOKEN for a slot without a
   *   sequence.
   * @param lengths `[n]`, positions filled so far. The position after them is written in every slot of the step.
   * @returns logits `[n, vocab]`, valid until the next step.
   */
  async step(ids: Int32Array, lengths: Int32Array, first = 0): Promise<Float32Array> {
    this.#assertOpen();
    const n = ids.length;
    const step = this.#stepBinding(first, n);
    let longest = 0;
    for (let i = 0; i < n; i++) {
      const length = lengths[i] as number;
      step.ids[i] = BigInt(Math.max(0, ids[i] as number)); // the logits of a slot without a sequence are not read
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

  /** Refuses further runs and frees the graph after the current run, which still uses it. */
  async dispose(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#currentRun.catch(() => {});
    for (const binding of this.#slots.values()) binding.dispose();
    for (const { binding } of this.#steps.values()) binding.dispose();
    for (const value of this.#bound) value.dispose();
    this.#session.dispose();
  }

  /** Called before anything is bound: after {@link dispose} the bindings point to freed memory. */
  #assertOpen(): void {
    if (this.#closed) throw new ServingError('draining', 'the engine is shut down');
  }

  async #run(binding: Binding, tokens: number, signal?: AbortSignal): Promise<void> {
    const startedMs = performance.now();
    this.#runStart = { startedMs, tokens };
    this.#currentRun = binding.run(signal);
    try {
      await this.#currentRun;
    } finally {
      this.#runStart = undefined;
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
        .input('soft_positions', this.#fixed({ type: 'int64', dims: [0, 2], data: int64([]) }))
        .input('logit_rows', this.#fixed({ type: 'int64', dims: [1], data: int64([0]) }))
        // seqlens_k is each row's total length - 1: with one new token, the positions filled so far.
        .input('seqlens_k', this.#fixed({ type: 'int32', dims: [n], data: lengths }))
        .input('total_sequence_length', this.#fixed({ type: 'int32', dims: [], data: total }))
        .output('logits', this.#fixed({ type: 'float32', dims: [n, vocabSize], data: this.#stepLogits }));
      this.#bindKv(binding, first, n);
      step = { binding, ids, lengths, total };
      this.#steps.set(key, step);
    }
    return step;
  }

  /**
   * Binds slots [first, first + n) as past and, at the same address, as present, so that the runtime appends in place.
   */
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

// Memory that V8 does not move, whatever its size. It is never empty, because an empty buffer has no address.
const bytes = (count: number) => new ArrayBuffer(Math.max(count, 8));
const float32 = (n: number) => new Float32Array(bytes(n * 4), 0, n);
const int32 = (n: number) => new Int32Array(bytes(n * 4), 0, n);
function int64(values: ArrayLike<number>): BigInt64Array {
  const out = new BigInt64Array(bytes(values.length * 8), 0, values.length);
  for (let i = 0; i < values.length; i++) out[i] = BigInt(values[i] as number);
  return out;
}
/** The graph's form of positions of the only sequence of a batch: (0, position) each. */
const places = (positions: ArrayLike<number>) => int64(Array.from(positions).flatMap((position) => [0, position]));
