/**
 * The decoder graph over the KV pool: one run is a prompt chunk on one slot, or a decode step over adjacent slots. Both
 * write keys and values in place; a step allocates nothing, and copies no KV. Only one run at a time is allowed.
 *
 * Where the caches lie decides how slots can be bound (engine-kv.ts). Where a slot cannot be bound by itself, a chunk
 * is computed in the staging slot (staging-slot.ts), and the result is copied to its place.
 * Where a step can begin only at slot 0, the slots before the first one ride along.
 */
import type { KvPool } from '../kv/pool.ts';
import { FIRST_POSITION, promptGraph } from '../model/graph/prompt-graph.ts';
import { ServingError } from '../process/errors.ts';
import type { SoftTokens } from '../request/token-prompt.ts';
import { CPU, type Device } from './device.ts';
import type { DeviceHealth } from './device-health.ts';
import type { DeviceInputs } from './device-inputs.ts';
import { CpuEngineKv, type EngineKv, Int8Kv } from './engine-kv.ts';
import { type Binding, NEVER, OrtSession, OrtValue, type SessionOptions } from './ort.ts';
import { openRows, type RowSet } from './row-runs.ts';
import { RunCosts } from './run-costs.ts';
import { StagingSlot } from './staging-slot.ts';
import { TokenPicker } from './token-picker.ts';

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
  /** `[n, vocab]`, on the host. */
  readonly logits: OrtValue;
  /** Where steps are recorded: the inputs on the device, which are filled from the arrays above. */
  readonly inputs: DeviceInputs | undefined;
}

/**
 * A run is overdue after this multiple of what the slowest recent runs took. (Later chunks of a prompt take longer.)
 */
const PATIENCE = 4;
/** Runs of fewer tokens take about the same time each; longer ones take about the same time per token. */
const SHORT_RUN = 64;
/** Factor per run by which measured maxima shrink, so that a run that was slow because of the machine is forgotten. */
const FADING = 0.99;

export interface DecoderOptions extends SessionOptions {
  /**
   * Whether it is to decode sequences. Otherwise it has room for a step of one row, and picks no tokens: with 64 slots
   * and a vocabulary of 152k it saves 39 MB of the device's memory and as much page-locked memory.
   */
  readonly decodes?: boolean;
  /** Computes with the graph in another structure (OrtSession.rewritten). Not with int8 KV. */
  readonly rewrite?: (model: Uint8Array) => Uint8Array;
}

/** Runs of several tokens of one sequence, which give what as many steps of it alone give, bit for bit. */
export interface Verifier {
  /** Tokens of the runs that there are, ascending; 1 stands for a step. */
  readonly rows: readonly number[];
  /** Time that a run of so many tokens takes, in ms. */
  costMs(rows: number): number;
  /**
   * @param slot that holds positions [0, past). The run writes [past, past + rows); what follows a token that the
   *   sequence does not take is written again by later runs, and read by none.
   * @param ids `[rows]`, the newest token, which the KV does not hold yet, and what may follow it.
   * @returns logits `[rows, vocab]`, those after each token; valid until the next run.
   */
  verify(slot: number, past: number, ids: Int32Array): Promise<Float32Array>;
}

/** Runs with which the time of each number of rows is measured at start; the quickest counts. */
const TIMED_RUNS = 3;

export class DecoderSession {
  readonly pool: KvPool<EngineKv>;
  /** Computes decode steps, and prompts where one graph computes both. */
  readonly #session: OrtSession;
  /** Computes prompts. */
  readonly #prompts: OrtSession;
  readonly #shape: DecoderShape;
  /** Where prompts are computed; undefined where they are computed in their own slots. */
  readonly #staging: StagingSlot | undefined;
  readonly #slots = new Map<number, Binding>();
  /** By `first * (slots + 1) + n`; see step(). */
  readonly #steps = new Map<number, StepBinding>();
  readonly #stepLogits: Float32Array;
  /** The most rows of a step. */
  readonly #stepRows: number;
  /** On a device: owns the memory of {@link #stepLogits}, to which the device copies fast. */
  readonly #hostLogits: OrtValue | undefined;
  /** Chooses greedy tokens where the logits are; only on a device. */
  readonly #picker: TokenPicker | undefined;
  /** Whether the device records the commands of a step, for each number of rows, and replays them. */
  readonly recordsSteps: boolean;
  /** Undefined on the CPU. */
  readonly #health: DeviceHealth | undefined;
  /** Values that the step bindings keep bound. */
  readonly #bound: OrtValue[] = [];
  /** Frees what the store has made for the bindings. */
  readonly #unbind: (() => void)[] = [];
  /** The current or last chunk or step, with the copies that belong to it. Never rejects. */
  #working: Promise<unknown> = Promise.resolve();
  #current: { readonly startedMs: number; readonly tokens: number } | undefined;
  /** Duration of the slowest recent short run. */
  #msPerShortRun = 0;
  /** The most that a recent long run took per token; 0 before there was one. */
  #msPerToken = 0;
  #closed = false;
  readonly #costs = new RunCosts();
  #rows: RowSet | undefined;

  private constructor(
    { steps, prompts }: Graphs,
    shape: DecoderShape,
    pool: KvPool<EngineKv>,
    picker: TokenPicker | undefined,
    device: Device,
    recordsSteps: boolean,
    stepRows: number,
  ) {
    this.#session = steps;
    this.#prompts = prompts;
    this.#shape = shape;
    this.pool = pool;
    const { staging } = pool.memory;
    this.#staging = staging === undefined ? undefined : new StagingSlot(pool, staging);
    this.#picker = picker;
    this.recordsSteps = recordsSteps;
    this.#health = device.kind === 'cpu' ? undefined : device.health;
    this.#stepRows = stepRows;
    const count = stepRows * shape.vocabSize;
    this.#hostLogits = device.kind === 'cpu' ? undefined : device.hostTensor('float32', [count]);
    this.#stepLogits = (this.#hostLogits?.tensor.data as Float32Array | undefined) ?? float32(count);
  }

  get vocabSize(): number {
    return this.#shape.vocabSize;
  }

  get hiddenSize(): number {
    return this.#shape.hiddenSize;
  }

  /** Time by which the current run is overdue, in ms. If it is above 0, the engine may never answer again. */
  get overdueMs(): number {
    if (this.#current === undefined) return 0;
    const { startedMs, tokens } = this.#current;
    // Before the first long run: a token of a long run takes no longer than a whole short run.
    const usualMs = this.#msPerShortRun + tokens * (this.#msPerToken || this.#msPerShortRun);
    return Math.max(0, performance.now() - startedMs - PATIENCE * usualMs);
  }

  /** @param graph path of the decoder's model.onnx. */
  static async load(
    graph: string,
    shape: DecoderShape,
    pool: KvPool<EngineKv>,
    options: DecoderOptions,
  ): Promise<DecoderSession> {
    const { device = CPU, decodes = true } = options;
    // A node that went to the CPU would make each step wait for it, and a provider that can compute none would leave
    // all of them to the CPU unnoticed.
    const whole = device.kind !== 'cpu';
    const graphCapture = device.kind === 'webgpu' && decodes && options.graphCapture === true;
    const graphs = await openGraphs(graph, pool, { ...options, decodes, whole, graphCapture });
    try {
      const picks = device.kind !== 'cpu' && decodes;
      const picker = picks ? await TokenPicker.open(device, pool.slots, shape.vocabSize) : undefined;
      return new DecoderSession(graphs, shape, pool, picker, device, graphCapture, decodes ? pool.slots : 1);
    } catch (error) {
      for (const session of Object.values(graphs)) session.dispose();
      throw error;
    }
  }

  /**
   * Opens the verify runs of the same graph, and measures them. Slot 0 loses its content.
   * @returns why there are none: undefined where there are.
   */
  async openVerifier(graph: string, options: SessionOptions): Promise<string | undefined> {
    const { memory } = this.pool;
    if (!(memory instanceof CpuEngineKv)) return 'verify runs are made for the CPU';
    try {
      this.#rows = await openRows(graph, this, memory, this.#shape, options);
    } catch (error) {
      return ServingError.from(error).message;
    }
    if (this.#rows === undefined) return 'this CPU computes several rows in another way than one';
    const past = Math.min(64, this.pool.capacity / 2);
    for (const rows of [1, ...this.#rows.keys()]) {
      const ids = new Int32Array(rows);
      const times: number[] = [];
      for (let i = 0; i < TIMED_RUNS; i++) {
        const startedMs = performance.now();
        if (rows === 1) await this.step(ids, Int32Array.of(past));
        else await this.verify(0, past, ids);
        times.push(performance.now() - startedMs);
      }
      this.#costs.start(rows, Math.min(...times));
    }
    return undefined;
  }

  /** Undefined where there are no verify runs. */
  get verifier(): Verifier | undefined {
    return this.#rows && this;
  }

  /** See {@link Verifier}. */
  get rows(): readonly number[] {
    return this.#costs.rows;
  }

  /** See {@link Verifier}. */
  costMs(rows: number): number {
    return this.#costs.of(rows);
  }

  /** See {@link Verifier}. @throws ServingError context_length_exceeded, draining after {@link dispose}. */
  async verify(slot: number, past: number, ids: Int32Array): Promise<Float32Array> {
    this.#assertOpen();
    const runs = this.#rows?.get(ids.length);
    if (runs === undefined) throw new RangeError(`no verify runs of ${ids.length} tokens`);
    this.#assertFits('a sequence', past + ids.length);
    return this.#alone('a verify run', ids.length, () => {
      this.#staging?.written(slot, past);
      return this.#timed(ids.length, () => runs.run(slot, past, ids));
    });
  }

  /**
   * Computes one chunk of a prompt. When this settles, nothing works on the slot or on `copyFrom` any more.
   * @returns logits `[logitRows, vocab]`.
   * @throws ServingError context_length_exceeded if the chunk does not fit the slot, draining after {@link dispose};
   *   the signal's reason.
   */
  async chunk(chunk: PromptChunk, signal?: AbortSignal): Promise<Float32Array> {
    this.#assertOpen();
    const end = chunk.past + chunk.ids.length;
    this.#assertFits('the prompt', end);
    return this.#alone('a chunk of a prompt', chunk.ids.length, () => this.#computeChunk(chunk, signal));
  }

  async #computeChunk(chunk: PromptChunk, signal?: AbortSignal): Promise<Float32Array> {
    const { slot, past, ids, copyFrom = slot } = chunk;
    const staging = this.#staging;
    if (staging === undefined) {
      if (past > 0 && copyFrom !== slot) {
        const copied = this.pool.store.copy(copyFrom, slot, past);
        if (copied) await copied;
      }
      return this.#runChunk(chunk, slot, signal);
    }
    await staging.bring(copyFrom, past);
    const logits = await this.#runChunk(chunk, staging.index, signal);
    await staging.place(slot, past, past + ids.length);
    return logits;
  }

  /** @param place the slot whose KV the run reads and writes. */
  async #runChunk({ ids, past, soft, logitRows }: PromptChunk, place: number, signal?: AbortSignal) {
    const { vocabSize, hiddenSize } = this.#shape;
    const end = past + ids.length;
    const logits = float32(logitRows.length * vocabSize);
    const made: OrtValue[] = [];
    const value = (...tensor: ConstructorParameters<typeof OrtValue>) => {
      const created = new OrtValue(...tensor);
      made.push(created);
      return created;
    };
    const binding = this.#slotBinding(place);
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
      if (this.pool.memory instanceof Int8Kv) {
        binding.input(FIRST_POSITION, value({ type: 'int64', dims: [1], data: int64([past]) }));
      }
      await binding.run(signal);
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
    const before = await this.#runStep(ids, lengths, first, 'fetch');
    const { vocabSize } = this.#shape;
    return this.#stepLogits.subarray(before * vocabSize, (before + ids.length) * vocabSize);
  }

  /** Whether {@link pick} is there. */
  get picksTokens(): boolean {
    return this.#picker !== undefined;
  }

  /**
   * Decodes like {@link step}, and chooses the likeliest tokens on the device, where the logits stay.
   * @returns `[n]`, the lowest id with the largest logit, or NO_CHOICE where that logit is not finite.
   */
  async pick(ids: Int32Array, lengths: Int32Array, first = 0): Promise<Int32Array> {
    const before = await this.#runStep(ids, lengths, first, 'pick');
    return this.#picker!.tokens.slice(before, before + ids.length);
  }

  /**
   * Computes a step, and fetches its logits or picks its tokens.
   * @returns the number of rows at its start that ride along.
   */
  async #runStep(ids: Int32Array, lengths: Int32Array, first: number, want: 'fetch' | 'pick'): Promise<number> {
    this.#assertOpen();
    const before = this.pool.memory.bindsAnywhere ? 0 : first;
    const rows = before + ids.length;
    if (rows > this.#stepRows) throw new RangeError(`a step of ${rows} rows, ${this.#stepRows} are the most`);
    const lengthOf = (row: number) => (row < before ? this.pool.claimed(row) : (lengths[row - before] as number));
    let longest = 0;
    for (let row = 0; row < rows; row++) longest = Math.max(longest, lengthOf(row) + 1);
    this.#assertFits('a sequence', longest);
    const key = (first - before) * (this.pool.slots + 1) + rows;
    await this.#alone(want === 'pick' ? 'a decode step' : 'a decode step with its logits', rows, async () => {
      const step = this.#steps.get(key) ?? (await this.#makeStep(key, first - before, rows));
      for (let row = 0; row < rows; row++) {
        // The logits of a slot without a sequence are not read.
        step.ids[row] = BigInt(Math.max(0, row < before ? NO_TOKEN : (ids[row - before] as number)));
        step.lengths[row] = lengthOf(row);
        this.#staging?.written(first - before + row, lengthOf(row));
      }
      step.total[0] = longest;
      await (rows === 1 ? this.#timed(1, () => this.#run(step, 1, want)) : this.#run(step, rows, want));
    });
    return before;
  }

  /** Notes the time of a step of one sequence, or of a verify run, for {@link costMs}. */
  async #timed<T>(rows: number, run: () => Promise<T>): Promise<T> {
    const startedMs = performance.now();
    const result = await run();
    this.#costs.observe(rows, performance.now() - startedMs);
    return result;
  }

  async #run(step: StepBinding, rows: number, want: 'fetch' | 'pick'): Promise<void> {
    const { binding, logits, inputs } = step;
    const picker = this.#picker;
    if (inputs !== undefined) await inputs.refill();
    else if (picker !== undefined) binding.output('logits', want === 'pick' ? picker.logits(rows) : logits);
    await binding.run();
    if (want === 'pick') await picker!.pick(rows);
    else if (inputs !== undefined) await picker!.fetch(rows, logits);
  }

  /** Refuses further runs and frees the graph after the current run, which still uses it. The pool stays. */
  async dispose(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#working;
    // The caller of the last step reads its logits before their memory is freed.
    if (this.#hostLogits) await new Promise(setImmediate);
    for (const binding of this.#slots.values()) binding.dispose();
    for (const { binding } of this.#steps.values()) binding.dispose();
    for (const unbind of this.#unbind) unbind();
    for (const runs of this.#rows?.values() ?? []) runs.dispose();
    for (const value of this.#bound) value.dispose();
    this.#hostLogits?.dispose();
    this.#picker?.dispose();
    this.#session.dispose();
    this.#prompts.dispose();
  }

  /** @throws ServingError context_length_exceeded */
  #assertFits(what: string, end: number): void {
    const { capacity } = this.pool;
    if (end <= capacity) return;
    throw new ServingError('context_length_exceeded', `${what} reaches ${end} tokens, a slot holds ${capacity}`);
  }

  /** Called before anything is bound: after {@link dispose} the bindings point to freed memory. */
  #assertOpen(): void {
    if (this.#closed) throw new ServingError('draining', 'the engine is shut down');
  }

  /**
   * Times the work for {@link overdueMs}, and notes it for {@link dispose} and for the health of the device.
   * @param kind what it is, for errors.
   * @param tokens that it computes.
   */
  async #alone<T>(kind: string, tokens: number, work: () => Promise<T>): Promise<T> {
    const startedMs = performance.now();
    this.#current = { startedMs, tokens };
    const working = this.#health ? this.#health.attempt(kind, work) : work();
    this.#working = working.catch(() => {});
    try {
      return await working;
    } finally {
      this.#current = undefined;
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
      binding = this.#prompts.bind();
      if (this.recordsSteps) binding.capture(NEVER);
      this.#unbind.push(this.pool.memory.bind(binding, slot, 1));
      this.#slots.set(slot, binding);
    }
    return binding;
  }

  /** @param key of the step, from 1 on: also the number under which a device records it. */
  async #makeStep(key: number, first: number, n: number): Promise<StepBinding> {
    const { vocabSize, hiddenSize } = this.#shape;
    const ids = new BigInt64Array(new ArrayBuffer(n * 8));
    const lengths = int32(n);
    const total = int32(1);
    const constant = {
      soft_tokens: this.#fixed({ type: 'float32', dims: [0, hiddenSize], data: float32(0) }),
      soft_positions: this.#fixed({ type: 'int64', dims: [0, 2], data: int64([]) }),
      logit_rows: this.#fixed({ type: 'int64', dims: [1], data: int64([0]) }),
    };
    const changing = {
      input_ids: this.#fixed({ type: 'int64', dims: [n, 1], data: ids }),
      // seqlens_k is each row's total length - 1: with one new token, the positions filled so far.
      seqlens_k: this.#fixed({ type: 'int32', dims: [n], data: lengths }),
      total_sequence_length: this.#fixed({ type: 'int32', dims: [], data: total }),
    };
    const logits = this.#fixed({ type: 'float32', dims: [n, vocabSize], data: this.#stepLogits });
    const binding = this.#session.bind();
    let inputs: DeviceInputs | undefined;
    try {
      if (this.recordsSteps) {
        inputs = await this.#picker!.record(binding, key, n, constant, changing);
        this.#unbind.push(() => inputs?.dispose());
      } else {
        for (const [name, value] of Object.entries(constant)) binding.constant(name, value);
        for (const [name, value] of Object.entries(changing)) binding.input(name, value);
        binding.output('logits', logits);
      }
      this.#unbind.push(this.pool.memory.bind(binding, first, n));
    } catch (error) {
      binding.dispose();
      throw error;
    }
    const step = { binding, ids, lengths, total, logits, inputs };
    this.#steps.set(key, step);
    return step;
  }
}

/** The sessions that compute steps and prompts; one and the same where a graph computes both. */
interface Graphs {
  readonly steps: OrtSession;
  readonly prompts: OrtSession;
}

/**
 * Opens a decoder graph. Where its KV lies in int8, prompts have a graph of their own over the same weights, and only
 * what is computed here is opened: a session fails when it is asked for the other.
 */
async function openGraphs(graph: string, { memory }: KvPool<EngineKv>, options: DecoderOptions): Promise<Graphs> {
  const { rewrite, decodes } = options;
  if (!(memory instanceof Int8Kv)) {
    const both = await (rewrite
      ? OrtSession.rewritten(graph, rewrite, options, true)
      : OrtSession.load(graph, options));
    return { steps: both, prompts: both };
  }
  if (memory.staging === undefined) {
    const steps = await OrtSession.load(graph, options);
    return { steps, prompts: steps };
  }
  const prompts = await OrtSession.rewritten(graph, (model) => promptGraph(model, memory.layout), options, true);
  if (decodes === false) return { steps: prompts, prompts };
  try {
    return { steps: await OrtSession.load(graph, options), prompts };
  } catch (error) {
    prompts.dispose();
    throw error;
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
