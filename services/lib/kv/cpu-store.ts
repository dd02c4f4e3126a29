/**
 * KV caches in the process's memory, all allocated at start. K and V of a layer are each `[slot, kv_head, position,
 * head_dim]`, so that a row of a slot is contiguous (layout.ts) and adjacent slots can be bound to a run as they lie.
 */
import { ServingError } from '../process/errors.ts';
import { machineMemory, sizeText } from '../process/memory.ts';
import { elementBytes, type KvLayout, type KvRange, type KvType, positionBytes, rowCount } from './layout.ts';
import type { KvStore, RowWriter } from './store.ts';

const ARRAY = { float32: Float32Array, float16: Uint16Array, 'int8-channel': Int8Array } as const;
export type KvArray = Float32Array | Uint16Array | Int8Array;

export class CpuKvStore implements KvStore {
  readonly layout: KvLayout;
  readonly slots: number;
  readonly capacity: number;
  readonly type: KvType;
  /** Per layer: K and V, each `[slot, kv_head, position, head_dim]`; float16 as its bits. */
  readonly layers: readonly { readonly key: KvArray; readonly value: KvArray }[];
  /** The bytes of the layers' tensors: K and V of the first layer, then of the second, and so on. */
  readonly #tensors: readonly Uint8Array[];
  /** Bytes of one row of one position. */
  readonly #vectorBytes: number;

  /** @throws ServingError out_of_memory, with the arithmetic, when the machine could never hold the slots. */
  constructor(layout: KvLayout, slots: number, capacity: number) {
    assertFits(layout, slots, capacity);
    this.layout = layout;
    this.slots = slots;
    this.capacity = capacity;
    this.type = layout.type ?? 'float32';
    this.#vectorBytes = layout.headDim * elementBytes(layout);
    const bytes = slots * layout.kvHeads * capacity * this.#vectorBytes;
    // Zeroed pages cost nothing until they are written.
    const tensor = () => new ARRAY[this.type](new ArrayBuffer(bytes));
    this.layers = Array.from({ length: layout.layers }, () => ({ key: tensor(), value: tensor() }));
    this.#tensors = this.layers.flatMap(({ key, value }) => [new Uint8Array(key.buffer), new Uint8Array(value.buffer)]);
  }

  /** Views of the slot's own memory. */
  read(slot: number, { start, end, rowStart, rowEnd }: KvRange): Uint8Array[] {
    return Array.from({ length: rowEnd - rowStart }, (_, i) => this.#row(slot, rowStart + i, start, end));
  }

  write(slot: number, { start, end, rowStart, rowEnd }: KvRange, rows: Uint8Array | RowWriter): void {
    const rowBytes = (end - start) * this.#vectorBytes;
    if (rows instanceof Uint8Array && rows.length !== (rowEnd - rowStart) * rowBytes) {
      throw new RangeError(
        `rows [${rowStart}, ${rowEnd}) of positions [${start}, ${end}) are not ${rows.length} bytes`,
      );
    }
    for (let i = 0; i < rowEnd - rowStart; i++) {
      const to = this.#row(slot, rowStart + i, start, end);
      if (rows instanceof Uint8Array) to.set(rows.subarray(i * rowBytes, (i + 1) * rowBytes));
      else rows(i, to);
    }
  }

  copy(from: number, to: number, end: number, start = 0): void {
    for (let row = 0; row < rowCount(this.layout); row++) {
      this.#row(to, row, start, end).set(this.#row(from, row, start, end));
    }
  }

  swap(a: number, b: number, end: number): void {
    const spare = new Uint8Array(end * this.#vectorBytes);
    for (let row = 0; row < rowCount(this.layout); row++) {
      const [rowA, rowB] = [this.#row(a, row, 0, end), this.#row(b, row, 0, end)];
      spare.set(rowA);
      rowA.set(rowB);
      rowB.set(spare);
    }
  }

  /** The memory goes with the last reference to it. */
  dispose(): void {}

  #row(slot: number, row: number, start: number, end: number): Uint8Array {
    const { kvHeads } = this.layout;
    const tensor = this.#tensors[Math.floor(row / kvHeads)];
    if (tensor === undefined || slot < 0 || slot >= this.slots || start < 0 || end > this.capacity) {
      throw new RangeError(
        `no slot ${slot}, row ${row}, positions [${start}, ${end}) in ${this.slots} slots of ` +
          `${rowCount(this.layout)} rows and ${this.capacity} positions`,
      );
    }
    const first = (slot * kvHeads + (row % kvHeads)) * this.capacity;
    return tensor.subarray((first + start) * this.#vectorBytes, (first + end) * this.#vectorBytes);
  }
}

function assertFits(layout: KvLayout, slots: number, capacity: number): void {
  const bytes = positionBytes(layout) * capacity * slots;
  const available = machineMemory();
  if (bytes <= available) return;
  throw new ServingError(
    'out_of_memory',
    `the KV pool needs ${slots} slots x ${capacity} tokens x ${positionBytes(layout)} bytes = ` +
      `${sizeText(bytes)}, the machine has ${sizeText(available)}; lower --slots or --capacity`,
  );
}
