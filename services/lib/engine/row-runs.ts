/**
 * Verify runs: several tokens of one sequence in one run, with the logits that decode steps of this sequence alone
 * would give, bit for bit (row-graph.ts). Each number of rows is a session of its own; all of them read the weights
 * that the decoder's session has mapped. On the CPU only.
 *
 * Kernels differ between CPUs, so equality is not assumed: it is measured at start, on logits and KV, and where it does
 * not hold there are no verify runs.
 */
import { rowGraph, VERIFIED_ROWS } from '../model/graph/row-graph.ts';
import type { CpuEngineKv } from './engine-kv.ts';
import { type Binding, OrtSession, OrtValue, type SessionOptions } from './ort.ts';

interface RowBinding {
  readonly binding: Binding;
  readonly unbind: () => void;
}

/** The runs of one number of rows. Only one run at a time is allowed. */
class RowRuns {
  readonly rows: number;
  readonly #session: OrtSession;
  readonly #memory: CpuEngineKv;
  readonly #vocab: number;
  /** `[1, rows]` */
  readonly #ids: BigInt64Array;
  /** `[rows]`, positions filled before each row. */
  readonly #lengths: Int32Array;
  /** `[rows, vocab]` */
  readonly #logits: Float32Array;
  /** Inputs and outputs but the KV, by name. */
  readonly #inputs: readonly (readonly [string, OrtValue])[];
  readonly #output: OrtValue;
  /** By slot. */
  readonly #bindings = new Map<number, RowBinding>();

  private constructor(session: OrtSession, memory: CpuEngineKv, rows: number, vocab: number, hidden: number) {
    this.rows = rows;
    this.#session = session;
    this.#memory = memory;
    this.#vocab = vocab;
    this.#ids = new BigInt64Array(new ArrayBuffer(rows * 8));
    this.#lengths = new Int32Array(new ArrayBuffer(rows * 4));
    this.#logits = new Float32Array(new ArrayBuffer(rows * vocab * 4));
    const empty = new ArrayBuffer(8); // an empty buffer has no address
    const wanted = new BigInt64Array(new ArrayBuffer(rows * 8)).map((_, row) => BigInt(row));
    const none = new Float32Array(empty, 0, 0);
    const total = new Int32Array(new ArrayBuffer(8), 0, 1);
    this.#inputs = [
      ['input_ids', new OrtValue({ type: 'int64', dims: [1, rows], data: this.#ids })],
      ['seqlens_k', new OrtValue({ type: 'int32', dims: [rows], data: this.#lengths })],
      ['total_sequence_length', new OrtValue({ type: 'int32', dims: [], data: total })],
      ['soft_tokens', new OrtValue({ type: 'float32', dims: [0, hidden], data: none })],
      ['soft_positions', new OrtValue({ type: 'int64', dims: [0, 2], data: new BigInt64Array(empty, 0, 0) })],
      ['logit_rows', new OrtValue({ type: 'int64', dims: [rows], data: wanted })],
    ];
    this.#output = new OrtValue({ type: 'float32', dims: [rows, vocab], data: this.#logits });
  }

  /**
   * @param graph path of the decoder's model.onnx.
   * @throws ServingError runtime_failed, also where the weights would be read a second time into private memory.
   */
  static async load(
    graph: string,
    memory: CpuEngineKv,
    rows: number,
    shape: { readonly vocabSize: number; readonly hiddenSize: number },
    options: SessionOptions,
  ): Promise<RowRuns> {
    const session = await OrtSession.rewritten(graph, (model) => rowGraph(model, rows), options);
    return new RowRuns(session, memory, rows, shape.vocabSize, shape.hiddenSize);
  }

  /**
   * Computes the rows of one sequence.
   * @param slot that holds positions [0, past). Positions [past, past + rows) are written.
   * @param ids `[rows]`, the newest token, which the KV does not hold yet, and what may follow it.
   * @returns logits `[rows, vocab]`: row i those after ids[i]. They are valid until the next run.
   */
  async run(slot: number, past: number, ids: Int32Array): Promise<Float32Array> {
    if (ids.length !== this.rows) throw new RangeError(`${ids.length} tokens for a run of ${this.rows}`);
    const { binding } = this.#bindings.get(slot) ?? this.#bind(slot);
    for (let row = 0; row < this.rows; row++) {
      this.#ids[row] = BigInt(ids[row]!);
      this.#lengths[row] = past + row;
    }
    await binding.run();
    return this.#logits;
  }

  /** Logits of one row of the last run. */
  rowOf(logits: Float32Array, row: number): Float32Array {
    return logits.subarray(row * this.#vocab, (row + 1) * this.#vocab);
  }

  #bind(slot: number): RowBinding {
    const binding = this.#session.bind();
    for (const [name, value] of this.#inputs) binding.input(name, value);
    binding.output('logits', this.#output);
    const bound = { binding, unbind: this.#memory.bind(binding, slot, 1, this.rows) };
    this.#bindings.set(slot, bound);
    return bound;
  }

  /** Frees the session. To be called when no run is under way. */
  dispose(): void {
    for (const { binding, unbind } of this.#bindings.values()) {
      binding.dispose();
      unbind();
    }
    for (const [, value] of this.#inputs) value.dispose();
    this.#output.dispose();
    this.#session.dispose();
  }
}

/** What the check needs of a decoder. */
interface CheckedDecoder {
  readonly vocabSize: number;
  step(ids: Int32Array, lengths: Int32Array, first: number): Promise<Float32Array>;
}

/** Positions at which the check begins: attention reads a short past, and one of more than a block of keys. */
const CHECK_STARTS = [3, 150];

/**
 * Whether a run gives the logits and the KV of as many steps, bit for bit. Slot 0 loses its content.
 * @param seed of the tokens that are computed.
 */
async function equalsSteps(runs: RowRuns, decoder: CheckedDecoder, memory: CpuEngineKv, seed: number) {
  const { rows } = runs;
  const ids = Int32Array.from({ length: rows }, (_, i) => ((seed + i) * 7919) % decoder.vocabSize);
  for (const start of CHECK_STARTS.filter((each) => each + rows <= memory.capacity)) {
    const logits: Float32Array[] = [];
    for (let row = 0; row < rows; row++) {
      logits.push((await decoder.step(ids.subarray(row, row + 1), Int32Array.of(start + row), 0)).slice());
    }
    const kv = () => memory.read(0, { start, end: start + rows, rowStart: 0, rowEnd: rowsOf(memory) });
    const ofSteps = kv().map((part) => Buffer.from(part));
    const found = await runs.run(0, start, ids);
    const same = logits.every((expected, row) => bytesOf(expected).equals(bytesOf(runs.rowOf(found, row))));
    if (!same || !kv().every((part, i) => ofSteps[i]!.equals(part))) return false;
  }
  return true;
}

const bytesOf = (values: Float32Array) => Buffer.from(values.buffer, values.byteOffset, values.byteLength);

const rowsOf = ({ layout }: CpuEngineKv) => layout.layers * 2 * layout.kvHeads;

/** The verify runs of a decoder, by number of rows. */
export type RowSet = ReadonlyMap<number, RowRuns>;

/**
 * Opens the runs for all of {@link VERIFIED_ROWS}.
 * @returns undefined where this CPU's kernels do not give the bits of steps.
 * @throws ServingError runtime_failed
 */
export async function openRows(
  graph: string,
  decoder: CheckedDecoder,
  memory: CpuEngineKv,
  shape: { readonly vocabSize: number; readonly hiddenSize: number },
  options: SessionOptions,
): Promise<RowSet | undefined> {
  const set = new Map<number, RowRuns>();
  let isWhole = false;
  try {
    for (const rows of VERIFIED_ROWS.filter((count) => count <= memory.capacity / 2)) {
      const runs = await RowRuns.load(graph, memory, rows, shape, options);
      set.set(rows, runs);
      if (!(await equalsSteps(runs, decoder, memory, rows))) return undefined;
    }
    isWhole = true;
    return set;
  } finally {
    if (!isWhole) for (const runs of set.values()) runs.dispose();
  }
}
