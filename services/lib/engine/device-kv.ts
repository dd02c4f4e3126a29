/**
 * KV caches in the memory of a device. K and V of each layer are a tensor `[slot, kv_head, position, head_dim]`; how
 * the slots are cut into tensors depends on what the worker computes, because a run can be bound only to whole tensors
 * or to the start of one:
 *
 * - `steps`: one tensor holds all slots. A decode step is bound to slots [0, n); a prompt only to slot 0.
 * - `both`: the same, and one more slot by itself, the staging slot, in which prompts are computed.
 * - `prompts`: each slot has tensors of its own, to which a prompt is bound directly.
 *
 * Positions are moved by the graphs of kv-copies.ts. Each graph has a fixed number of tensors, and kernels of its own
 * that a device compiles for 100 to 500 ms of CPU time (lavapipe). A frame of a hand-over touches any number of
 * tensors, so it takes several runs of a few graphs, which {@link DeviceKv.warmUp} has compiled before the worker
 * serves.
 */
import { elementBytes, type KvLayout, type KvRange, positionBytes, rowCount } from '../kv/layout.ts';
import type { RowWriter } from '../kv/store.ts';
import { buildKvCopy, buildKvExport, buildKvImport } from '../model/graph/kv-copies.ts';
import { ServingError } from '../process/errors.ts';
import { sizeText } from '../process/memory.ts';
import type { Accelerator, DeviceTensor } from './device.ts';
import type { EngineKv } from './engine-kv.ts';
import { type Binding, OrtSession, OrtValue } from './ort.ts';
import type { TensorData } from './ort-value.ts';

export type KvUse = 'prompts' | 'steps' | 'both';

/** Some slots of all layers: layer 0's K, layer 0's V, layer 1's K, and so on. */
interface Block {
  /** The first slot of the store that lies here. */
  readonly first: number;
  readonly slots: number;
  readonly tensors: readonly DeviceTensor[];
  /** The same memory as `[slots * kv_heads * capacity, head_dim]`. */
  readonly flat: readonly DeviceTensor[];
}

/** A part of one tensor: the heads [from, to). */
interface Part {
  /** Index of the tensor: layer * 2 + (0 for K, 1 for V). */
  readonly tensor: number;
  readonly from: number;
  readonly to: number;
}

/** One run of a graph that exports or imports. */
interface Run {
  readonly parts: readonly Part[];
  /** Rows of the range before those of this run, and rows of this run. */
  readonly row: number;
  readonly count: number;
}

export class DeviceKv implements EngineKv {
  readonly layout: KvLayout;
  readonly slots: number;
  readonly capacity: number;
  readonly type: 'float32' | 'float16';
  /** The slot after the last one, in which prompts are computed; undefined where they are computed in place. */
  readonly staging: number | undefined;
  /** Whether a step can begin at any slot. Otherwise it begins at slot 0. */
  readonly bindsAnywhere: boolean;
  readonly #device: Accelerator;
  readonly #blocks: Block[];
  /** Holds a slot for the moment of a swap between tensors; made when it is first needed. */
  #spare: Promise<Block> | undefined;
  /** The operation that was asked for last. Never rejects. */
  #last: Promise<unknown> = Promise.resolve();
  #disposing: Promise<void> | undefined;
  readonly #use: KvUse;
  /** Numbers of tensors that a run exports or imports, the largest first: all tensors, and the powers of two below. */
  readonly #sizes: readonly number[];
  /** The graphs that have been needed so far, by kind and number of tensors. */
  readonly #graphs = new Map<string, Promise<OrtSession>>();

  private constructor(device: Accelerator, layout: KvLayout, slots: number, capacity: number, use: KvUse) {
    this.#device = device;
    this.layout = layout;
    this.slots = slots;
    this.capacity = capacity;
    this.type = layout.type === 'float16' ? 'float16' : 'float32'; // no device computes levels (bundle.ts)
    this.staging = use === 'both' ? slots : undefined;
    this.bindsAnywhere = use === 'prompts';
    this.#use = use;
    this.#sizes = runSizes(2 * layout.layers);
    this.#blocks = [];
  }

  /**
   * @throws ServingError out_of_memory, with the arithmetic, where the device reports it. WebGPU does not: write to the
   *   last position of each slot and read it back before relying on it.
   */
  static async create(
    device: Accelerator,
    layout: KvLayout,
    slots: number,
    capacity: number,
    use: KvUse,
  ): Promise<DeviceKv> {
    const store = new DeviceKv(device, layout, slots, capacity, use);
    try {
      if (use === 'prompts') for (let slot = 0; slot < slots; slot++) store.#blocks.push(await store.#block(slot, 1));
      else store.#blocks.push(await store.#block(0, slots));
      if (use === 'both') store.#blocks.push(await store.#block(slots, 1));
      return store;
    } catch (error) {
      await store.dispose();
      throw error;
    }
  }

  /**
   * Binds slots [first, first + n) as past and, at the same address, as present, so that the runtime appends in place.
   * @returns frees what was made for it; called after the binding is disposed of.
   * @throws RangeError for slots that no run can be bound to; see the top of this file.
   */
  bind(binding: Binding, first: number, n: number): () => void {
    const block = this.#blocks.find((candidate) => candidate.first === first);
    if (block === undefined || n > block.slots) throw new RangeError(`slots [${first}, ${first + n}) cannot be bound`);
    const { kvHeads, headDim } = this.layout;
    const heads = block.tensors.map((tensor) => tensor.head([n, kvHeads, this.capacity, headDim]));
    for (const [i, value] of heads.entries()) {
      const name = `${i >> 1}.${i % 2 === 0 ? 'key' : 'value'}`;
      binding.input(`past.${name}`, value).output(`present.${name}`, value);
    }
    return () => {
      for (const value of heads) value.dispose();
    };
  }

  read(slot: number, range: KvRange): Promise<Uint8Array[]> {
    return this.#inOrder('reading KV', () => this.#read(slot, range));
  }

  /** The bytes are copied at once. */
  write(slot: number, range: KvRange, rows: Uint8Array | RowWriter): Promise<void> {
    const { start, end, rowStart, rowEnd } = range;
    this.#assertOpen();
    this.#blockOf(slot, range);
    const count = rowEnd - rowStart;
    const rowBytes = (end - start) * this.#vectorBytes;
    if (rows instanceof Uint8Array && rows.length !== count * rowBytes) {
      throw new RangeError(
        `rows [${rowStart}, ${rowEnd}) of positions [${start}, ${end}) are not ${rows.length} bytes`,
      );
    }
    const host = this.#host([count, end - start, this.layout.headDim]);
    const bytes = new Uint8Array(host.tensor.data.buffer, 0, count * rowBytes);
    try {
      if (rows instanceof Uint8Array) bytes.set(rows);
      else for (let i = 0; i < count; i++) rows(i, bytes.subarray(i * rowBytes, (i + 1) * rowBytes));
    } catch (error) {
      host.dispose();
      throw error;
    }
    return this.#inOrder('writing KV', () => this.#write(slot, range, host)).finally(() => host.dispose());
  }

  copy(from: number, to: number, end: number, start = 0): Promise<void> {
    return this.#inOrder('copying KV', () => this.#copy(from, to, start, end));
  }

  swap(a: number, b: number, end: number): Promise<void> {
    return this.#inOrder('exchanging KV', () => this.#swap(a, b, end));
  }

  /**
   * Runs each graph that a worker of this kind uses once, so that the device compiles its kernels before there are
   * decode steps that would wait for it. Position 0 of slot 0, and of the slot to which it is copied, lose their
   * content.
   */
  async warmUp(): Promise<void> {
    const rowsOf = (tensors: number) => ({ start: 0, end: 1, rowStart: 0, rowEnd: tensors * this.layout.kvHeads });
    for (const tensors of this.#sizes) {
      if (this.#use !== 'prompts') await this.write(0, rowsOf(tensors), () => {});
      if (this.#use !== 'steps') await this.read(0, rowsOf(tensors));
    }
    // Only where prompts are computed a beginning is copied.
    if (this.#use !== 'steps') await this.copy(0, this.staging ?? this.slots - 1, 1);
  }

  /** Refuses further operations, and frees the memory and the graphs after those that were asked for before. */
  dispose(): Promise<void> {
    this.#disposing ??= this.#dispose();
    return this.#disposing;
  }

  async #dispose(): Promise<void> {
    await this.#last;
    const spare = await this.#spare?.catch(() => undefined);
    for (const block of spare ? [...this.#blocks, spare] : this.#blocks) release(block);
    const sessions = await Promise.allSettled(this.#graphs.values());
    for (const opened of sessions) if (opened.status === 'fulfilled') opened.value.dispose();
  }

  /** Opening a graph takes time when it is first needed: operations must not overtake each other meanwhile. */
  async #inOrder<T>(kind: string, operation: () => Promise<T>): Promise<T> {
    this.#assertOpen();
    const done = this.#last.then(() => this.#device.health.attempt(kind, operation));
    this.#last = done.catch(() => {});
    return done;
  }

  #assertOpen(): void {
    if (this.#disposing) throw new ServingError('draining', 'the engine is shut down');
  }

  async #read(slot: number, range: KvRange): Promise<Uint8Array[]> {
    const block = this.#blockOf(slot, range);
    const { start, end, rowStart, rowEnd } = range;
    const rowBytes = (end - start) * this.#vectorBytes;
    const count = rowEnd - rowStart;
    if (rowBytes * count === 0) return Array.from({ length: count }, () => new Uint8Array(0));
    const rows = this.#host([1, count, end - start, this.layout.headDim]);
    const bytes = rows.tensor.data;
    try {
      for (const run of this.#runs(range)) await this.#exportRows(block, slot, range, run, bytes);
    } finally {
      rows.dispose();
    }
    return Array.from({ length: count }, (_, i) => new Uint8Array(bytes.buffer, i * rowBytes, rowBytes));
  }

  /** @param rows `[rows of the range, positions, head_dim]`, of which the run fills its own. */
  #exportRows(block: Block, slot: number, { start, end }: KvRange, run: Run, rows: TensorData): Promise<void> {
    const { headDim } = this.layout;
    const { parts, row, count } = run;
    const n = end - start;
    const at = slot - block.first;
    return this.#runGraph('export', parts.length, (binding, own) => {
      for (const [i, { tensor, from, to }] of parts.entries()) {
        binding
          .input(`tensor.${i}`, block.tensors[tensor] as DeviceTensor)
          .input(`start.${i}`, own(int64([3], [at, from, start])))
          .input(`end.${i}`, own(int64([3], [at + 1, to, end])));
      }
      const data = rows.subarray(row * n * headDim, (row + count) * n * headDim);
      binding.output('rows', own(new OrtValue({ type: this.type, dims: [1, count, n, headDim], data })));
    });
  }

  async #write(slot: number, range: KvRange, rows: OrtValue): Promise<void> {
    const block = this.#blockOf(slot, range);
    if (rows.tensor.data.length === 0) return;
    for (const run of this.#runs(range)) await this.#importRows(block, slot, range, run, rows.tensor.data);
  }

  /** @param rows `[rows of the range, positions, head_dim]`, of which the run writes its own. */
  #importRows(block: Block, slot: number, { start, end }: KvRange, run: Run, rows: TensorData): Promise<void> {
    const { headDim } = this.layout;
    const n = end - start;
    return this.#runGraph('import', run.parts.length, (binding, own) => {
      let { row } = run;
      for (const [i, { tensor, from, to }] of run.parts.entries()) {
        const cells = this.#cells(slot - block.first, from, to, start, end);
        const data = rows.subarray(row * n * headDim, (row + to - from) * n * headDim);
        const memory = block.flat[tensor] as DeviceTensor;
        binding
          .input(`tensor.${i}`, memory)
          .input(`cells.${i}`, own(int64([cells.length, 1], cells)))
          .input(`rows.${i}`, own(new OrtValue({ type: this.type, dims: [cells.length, headDim], data })))
          .output(`written.${i}`, memory);
        row += to - from;
      }
    });
  }

  async #copy(from: number, to: number, start: number, end: number): Promise<void> {
    const [source, target] = [this.#blockOf(from, { start, end }), this.#blockOf(to, { start, end })];
    const [read, written] = [this.#slotCells(source, from, start, end), this.#slotCells(target, to, start, end)];
    await this.#copyCells(source, read, target, written);
  }

  async #swap(a: number, b: number, end: number): Promise<void> {
    const [blockA, blockB] = [this.#blockOf(a, { end }), this.#blockOf(b, { end })];
    const [cellsA, cellsB] = [this.#slotCells(blockA, a, 0, end), this.#slotCells(blockB, b, 0, end)];
    if (a === b) return;
    if (blockA === blockB) {
      await this.#copyCells(blockA, [...cellsA, ...cellsB], blockA, [...cellsB, ...cellsA]);
      return;
    }
    this.#spare ??= this.#block(-1, 1);
    const spare = await this.#spare;
    const cells = this.#slotCells(spare, spare.first, 0, end);
    await this.#copyCells(blockA, cellsA, spare, cells);
    await this.#copyCells(blockB, cellsB, blockA, cellsA);
    await this.#copyCells(spare, cells, blockB, cellsB);
  }

  get #vectorBytes(): number {
    return this.layout.headDim * elementBytes(this.layout);
  }

  async #copyCells(source: Block, from: readonly number[], target: Block, to: readonly number[]): Promise<void> {
    if (from.length === 0) return;
    await this.#runGraph('copy', 2 * this.layout.layers, (binding, own) => {
      binding.input('source', own(int64([from.length], from))).input('target', own(int64([to.length, 1], to)));
      for (const [i, memory] of target.flat.entries()) {
        binding
          .input(`from.${i}`, source.flat[i] as DeviceTensor)
          .input(`to.${i}`, memory)
          .output(`written.${i}`, memory);
      }
    });
  }

  /**
   * Runs a graph of a kind for a number of tensors.
   * @param bind binds its inputs and outputs. Values that it passes through `own` are freed after the run.
   */
  async #runGraph(
    kind: keyof typeof BUILD,
    tensors: number,
    bind: (binding: Binding, own: (value: OrtValue) => OrtValue) => void,
  ): Promise<void> {
    const binding = (await this.#graph(kind, tensors)).bind();
    const values: OrtValue[] = [];
    try {
      bind(binding, (value) => {
        values.push(value);
        return value;
      });
      await binding.run();
    } finally {
      binding.dispose();
      for (const value of values) value.dispose();
    }
  }

  /** A graph of a kind for a number of tensors. */
  #graph(kind: keyof typeof BUILD, tensors: number): Promise<OrtSession> {
    const key = `${kind} ${tensors}`;
    const known = this.#graphs.get(key);
    if (known) return known;
    // A node on the CPU would take whole tensors across the bus.
    const options = { device: this.#device, threads: 1, whole: true };
    const opening = OrtSession.build(BUILD[kind](tensors, this.type), options);
    this.#graphs.set(key, opening);
    opening.catch(() => this.#graphs.delete(key));
    return opening;
  }

  async #block(first: number, slots: number): Promise<Block> {
    const { layers, kvHeads, headDim } = this.layout;
    const tensors: DeviceTensor[] = [];
    const flat: DeviceTensor[] = [];
    try {
      for (let i = 0; i < 2 * layers; i++) {
        const tensor = await this.#device.tensor(this.type, [slots, kvHeads, this.capacity, headDim]);
        tensors.push(tensor);
        flat.push(tensor.head([slots * kvHeads * this.capacity, headDim]));
      }
      return { first, slots, tensors, flat };
    } catch (error) {
      release({ first, slots, tensors, flat });
      const per = positionBytes(this.layout);
      const need = sizeText(per * this.capacity * this.slots);
      throw new ServingError(
        'out_of_memory',
        `the KV caches need ${this.slots} slots x ${this.capacity} tokens x ${per} bytes = ${need} on ` +
          `${this.#device.name}: ${(error as Error).message}; lower --slots or --capacity`,
        { cause: error },
      );
    }
  }

  #blockOf(slot: number, { start = 0, end, rowStart = 0, rowEnd = 0 }: Partial<KvRange> & { end: number }): Block {
    const block = this.#blocks.find(({ first, slots }) => slot >= first && slot < first + slots);
    const rows = rowCount(this.layout);
    if (!block || start < 0 || end < start || end > this.capacity || rowStart < 0 || rowEnd > rows) {
      throw new RangeError(
        `no slot ${slot}, rows [${rowStart}, ${rowEnd}), positions [${start}, ${end}) in ${this.slots} slots of ` +
          `${rows} rows and ${this.capacity} positions`,
      );
    }
    return block;
  }

  /** The runs that export or import a range's rows: as many tensors in each as there is a graph for. */
  #runs(range: KvRange): Run[] {
    const parts = this.#parts(range);
    const runs: Run[] = [];
    let row = 0;
    for (let at = 0; at < parts.length; ) {
      const size = this.#sizes.find((tensors) => tensors <= parts.length - at) as number;
      const taken = parts.slice(at, at + size);
      const count = taken.reduce((sum, { from, to }) => sum + to - from, 0);
      runs.push({ parts: taken, row, count });
      row += count;
      at += size;
    }
    return runs;
  }

  /** The tensors that hold a range's rows, with the heads of each. */
  #parts({ rowStart, rowEnd }: KvRange): Part[] {
    const { kvHeads } = this.layout;
    const parts: Part[] = [];
    for (let row = rowStart; row < rowEnd; ) {
      const tensor = Math.floor(row / kvHeads);
      const next = Math.min(rowEnd, (tensor + 1) * kvHeads);
      parts.push({ tensor, from: row - tensor * kvHeads, to: next - tensor * kvHeads });
      row = next;
    }
    return parts;
  }

  #slotCells(block: Block, slot: number, start: number, end: number): number[] {
    return this.#cells(slot - block.first, 0, this.layout.kvHeads, start, end);
  }

  /** Indices of the cells of heads [from, to), positions [start, end), of a slot of a block. */
  #cells(slot: number, from: number, to: number, start: number, end: number): number[] {
    const cells: number[] = [];
    for (let head = from; head < to; head++) {
      const first = (slot * this.layout.kvHeads + head) * this.capacity;
      for (let position = start; position < end; position++) cells.push(first + position);
    }
    return cells;
  }

  /** Memory of the host that lives as long as somebody refers to its bytes. */
  #host(dims: readonly number[]): OrtValue {
    const count = dims.reduce((product, dim) => product * dim, 1);
    const bytes = new ArrayBuffer(Math.max(8, count * elementBytes(this.layout)));
    const data = this.type === 'float16' ? new Uint16Array(bytes, 0, count) : new Float32Array(bytes, 0, count);
    return new OrtValue({ type: this.type, dims, data });
  }
}

const BUILD = { export: buildKvExport, import: buildKvImport, copy: buildKvCopy } as const;

/** All tensors, and the powers of two below: any number of tensors is a sum of few of them. */
function runSizes(tensors: number): number[] {
  const sizes = [tensors];
  for (let size = 2 ** Math.floor(Math.log2(tensors)); size >= 1; size /= 2) if (size < tensors) sizes.push(size);
  return sizes;
}

function release({ tensors, flat }: Block): void {
  for (const tensor of [...flat, ...tensors]) tensor.dispose();
}

function int64(dims: readonly number[], values: readonly number[]): OrtValue {
  const data = new BigInt64Array(new ArrayBuffer(Math.max(8, values.length * 8)), 0, values.length);
  const halves = new Uint32Array(data.buffer); // much faster than one BigInt for each
  for (const [i, value] of values.entries()) {
    halves[2 * i] = value;
    halves[2 * i + 1] = value / 2 ** 32;
  }
  return new OrtValue({ type: 'int64', dims, data });
}
