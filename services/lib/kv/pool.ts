/**
 * The KV caches of a worker, all allocated at start: `slots` sequences of up to `capacity` positions each. Only the
 * pool counts slots and bytes; a part that computes or decodes a sequence holds a {@link KvSlot}.
 */
import { totalmem } from 'node:os';
import { ServingError } from '../process/errors.ts';
import { elementBytes, type KvLayout, positionBytes, rowCount } from './layout.ts';

/** A slot that is held. Releasing or keeping it a second time does nothing. */
export interface KvSlot {
  readonly index: number;
  /** Gives the slot back empty. */
  release(): void;
  /** Gives the slot back filled: it can be taken again with its content, until the pool needs the room. */
  keep(): void;
}

export type KvArray = Float32Array | Uint16Array;

/** Called when all slots are taken: gives up a kept slot and returns its index; undefined if it has none to give up. */
type PressureListener = () => number | undefined;

type SlotState = 'free' | 'kept' | 'held';

export class KvPool {
  readonly layout: KvLayout;
  readonly slots: number;
  readonly capacity: number;
  readonly floats: 'float32' | 'float16';
  /** Per layer: K and V, each `[slot, kv_head, position, head_dim]`; float16 as its bits. */
  readonly layers: readonly { readonly key: KvArray; readonly value: KvArray }[];
  readonly #states: SlotState[];
  /** Per slot: positions from 0 that only its holder may write. */
  readonly #claimed: Int32Array;
  #held = 0;
  readonly #pressureListeners = new Set<PressureListener>();
  /** Waiting for a slot, in order of arrival. */
  readonly #line: { readonly sinceMs: number; readonly tryReserve: () => boolean }[] = [];
  #serving = false;

  /** @throws ServingError out_of_memory, with the arithmetic, when the machine could never hold the pool. */
  constructor(layout: KvLayout, slots: number, capacity: number) {
    const bytes = positionBytes(layout) * capacity * slots;
    const available = Math.min(totalmem(), process.constrainedMemory() || Number.POSITIVE_INFINITY);
    if (bytes > available) {
      throw new ServingError(
        'out_of_memory',
        `the KV pool needs ${slots} slots x ${capacity} tokens x ${positionBytes(layout)} bytes = ${gib(bytes)}, the machine has ${gib(available)}; lower --slots or --capacity`,
      );
    }
    this.layout = layout;
    this.slots = slots;
    this.capacity = capacity;
    const elements = slots * layout.kvHeads * capacity * layout.headDim;
    this.floats = layout.floats ?? 'float32';
    const ArrayType = this.floats === 'float16' ? Uint16Array : Float32Array;
    this.layers = Array.from({ length: layout.layers }, () => ({
      // Zeroed pages cost nothing until they are written.
      key: new ArrayType(new ArrayBuffer(elements * elementBytes(layout))),
      value: new ArrayType(new ArrayBuffer(elements * elementBytes(layout))),
    }));
    this.#states = new Array<SlotState>(slots).fill('free');
    this.#claimed = new Int32Array(slots);
  }

  /** Slots that can be reserved now, kept ones included. */
  get free(): number {
    return this.slots - this.#held;
  }

  /** Slots that are held. */
  get reserved(): number {
    return this.#held;
  }

  /**
   * Subscribes a part that keeps slots. Listeners are asked in order of subscription until one gives up a slot.
   * @returns unsubscribes.
   */
  onPressure(listener: PressureListener): () => void {
    this.#pressureListeners.add(listener);
    return () => this.#pressureListeners.delete(listener);
  }

  /** Whether others wait for a slot: a newcomer has to wait behind them. */
  get contended(): boolean {
    return this.#line.length > 0;
  }

  /**
   * Waits for a slot: first come, first served, whatever the slot is for.
   * @param tryReserve called at its turn when a slot may be free; returns true to leave the line.
   * @param sinceMs time of arrival, by the monotonic clock.
   * @returns leaves the line; does nothing once the place is gone.
   */
  wait(tryReserve: () => boolean, sinceMs = performance.now()): () => void {
    const place = this.#line.findLastIndex((other) => other.sinceMs <= sinceMs) + 1;
    this.#line.splice(place, 0, { sinceMs, tryReserve });
    return () => this.#leave(tryReserve);
  }

  /** Lets those in the line try to take a slot. */
  offer(): void {
    if (this.#serving) return; // called from within `tryReserve`: the loop below goes on anyway
    this.#serving = true;
    for (let first = this.#line[0]; first?.tryReserve(); first = this.#line[0]) this.#leave(first.tryReserve);
    this.#serving = false;
  }

  /**
   * The lowest free slot, so that the slots in use stay together at the front, else a kept one; undefined when all are
   * held.
   * @param positions length of the content that the slot will hold.
   */
  reserve(positions: number): KvSlot | undefined {
    const free = this.#states.indexOf('free');
    const index = free >= 0 ? free : this.#evictKept();
    return index === undefined ? undefined : this.#hold(index, positions);
  }

  /** Slot `index` with its content; undefined when it is held. */
  take(index: number, positions: number): KvSlot | undefined {
    return index >= this.slots || this.isHeld(index) ? undefined : this.#hold(index, positions);
  }

  isHeld(index: number): boolean {
    return this.#states[index] === 'held';
  }

  isKept(index: number): boolean {
    return this.#states[index] === 'kept';
  }

  /**
   * The number n of positions [0, n) of a slot that hold or will hold content. A decode step writes to every slot that
   * it spans: in a slot without a running sequence it writes to position n.
   */
  claimed(slot: number): number {
    return this.#claimed[slot] as number;
  }

  /** The holder of the slot says how many of its positions hold content from now on. */
  claim(slot: number, positions: number): void {
    this.#claimed[slot] = positions;
  }

  /** Copies positions [0, end) of all rows from one slot to another. */
  copy(from: number, to: number, end: number): void {
    for (let row = 0; row < rowCount(this.layout); row++) {
      this.rowBytes(to, row, 0, end).set(this.rowBytes(from, row, 0, end));
    }
  }

  /** Exchanges positions [0, end) of all rows of two slots. */
  swap(a: number, b: number, end: number): void {
    let spare: Uint8Array | undefined;
    for (let row = 0; row < rowCount(this.layout); row++) {
      const [rowA, rowB] = [this.rowBytes(a, row, 0, end), this.rowBytes(b, row, 0, end)];
      spare ??= new Uint8Array(rowA.length);
      spare.set(rowA);
      rowA.set(rowB);
      rowB.set(spare);
    }
  }

  /**
   * Positions [start, end) of one row of a slot: a view of `[end - start, head_dim]`.
   * @throws TypeError for a pool of float16.
   */
  row(slot: number, row: number, start: number, end: number): Float32Array {
    const view = this.#view(slot, row, start, end);
    if (view instanceof Float32Array) return view;
    throw new TypeError('a pool of float16 holds no 32-bit floats');
  }

  /** The bytes of the same view, for a pool of any type. */
  rowBytes(slot: number, row: number, start: number, end: number): Uint8Array {
    const view = this.#view(slot, row, start, end);
    return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  }

  #view(slot: number, row: number, start: number, end: number): KvArray {
    const { kvHeads, headDim } = this.layout;
    const head = row % kvHeads;
    const tensor = Math.floor(row / kvHeads);
    const layer = this.layers[tensor >> 1];
    if (layer === undefined || start < 0 || end > this.capacity) {
      throw new RangeError(`no row ${row}, positions [${start}, ${end}) in a pool of ${rowCount(this.layout)} rows`);
    }
    const offset = (slot * kvHeads + head) * this.capacity * headDim;
    return (tensor % 2 === 0 ? layer.key : layer.value).subarray(offset + start * headDim, offset + end * headDim);
  }

  /** Called when nothing runs: a slot that is held without a holder is a leak. @param held slots that parts hold. */
  assertConserved(held: number): void {
    const counted = this.#states.filter((state) => state === 'held').length;
    if (counted !== this.#held || this.#held !== held) {
      throw new ServingError(
        'internal',
        `KV slots leaked: ${counted} of ${this.slots} are held, but holders account for ${held}`,
      );
    }
  }

  /** Index of a kept slot that a listener gave up. */
  #evictKept(): number | undefined {
    for (const listener of this.#pressureListeners) {
      const index = listener();
      if (index !== undefined) return index;
    }
    return undefined;
  }

  #leave(tryReserve: () => boolean): void {
    const index = this.#line.findIndex((other) => other.tryReserve === tryReserve);
    if (index >= 0) this.#line.splice(index, 1);
  }

  #hold(index: number, positions: number): KvSlot {
    this.#states[index] = 'held';
    this.#claimed[index] = positions;
    this.#held++;
    let held = true;
    const end = (state: SlotState) => {
      if (!held) return;
      held = false;
      this.#held--;
      this.#states[index] = state;
      if (state === 'free') this.#claimed[index] = 0;
      this.offer();
    };
    return { index, release: () => end('free'), keep: () => end('kept') };
  }
}

const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
