/**
 * The KV caches of a worker, all allocated at start: `slots` sequences of up to `capacity` positions. The only accountant
 * of this memory: whoever computes or decodes a sequence holds a {@link KvSlot}, and nothing else counts slots or bytes.
 */
import { totalmem } from 'node:os';
import { ServingError } from '../process/errors.ts';
import { elementBytes, type KvLayout, positionBytes, rowCount } from './layout.ts';

/** A slot in somebody's hands. Giving it back twice is harmless. */
export interface KvSlot {
  readonly index: number;
  /** Its content is worth nothing any more. */
  release(): void;
  /** Gives it back filled: it may be taken again with what it holds, until somebody needs the room. */
  keep(): void;
}

export type KvArray = Float32Array | Uint16Array;

type State = 'free' | 'kept' | 'held';

export class KvPool {
  readonly layout: KvLayout;
  readonly slots: number;
  readonly capacity: number;
  readonly floats: 'float32' | 'float16';
  /** Per layer: K and V, each [slots, kv_heads, capacity, head_dim]; float16 by its bits. */
  readonly layers: readonly { readonly key: KvArray; readonly value: KvArray }[];
  readonly #states: State[];
  /** Per slot: positions from 0 that must not be written by anybody but its holder. */
  readonly #claimed: Int32Array;
  #held = 0;
  /** Names a kept slot to be given up, and forgets it. */
  #evict: () => number | undefined = () => undefined;
  /** Those who wait for a slot, in order of coming. */
  readonly #line: { readonly sinceMs: number; readonly take: () => boolean }[] = [];
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
    this.#states = new Array<State>(slots).fill('free');
    this.#claimed = new Int32Array(slots);
  }

  /** Slots that could be reserved now, kept ones included. */
  get free(): number {
    return this.slots - this.#held;
  }

  /** Slots in somebody's hands. */
  get reserved(): number {
    return this.#held;
  }

  /** Who keeps slots says which of them to give up when all are taken. */
  onPressure(evict: () => number | undefined): void {
    this.#evict = evict;
  }

  /** Whether others wait for a slot: who comes now does so behind them. */
  get contended(): boolean {
    return this.#line.length > 0;
  }

  /**
   * Waits for a slot: first come, first served, whatever it is for.
   * @param take called when a slot may be free and it is its turn; whether it needs its place no longer.
   * @param sinceMs when it came, by the monotonic clock.
   * @returns gives the place up; once it is gone, harmless.
   */
  wait(take: () => boolean, sinceMs = performance.now()): () => void {
    const place = this.#line.findLastIndex((other) => other.sinceMs <= sinceMs) + 1;
    this.#line.splice(place, 0, { sinceMs, take });
    return () => this.#leave(take);
  }

  /** A slot may be free for those who wait. */
  offer(): void {
    if (this.#serving) return; // a slot came back from the one whose turn it is: the loop below goes on
    this.#serving = true;
    for (let first = this.#line[0]; first?.take(); first = this.#line[0]) this.#leave(first.take);
    this.#serving = false;
  }

  /**
   * The lowest free slot, so that those in use stay close to a prefix, else a kept one; undefined when all are held.
   * @param positions that its content will have, from 0.
   */
  reserve(positions: number): KvSlot | undefined {
    const free = this.#states.indexOf('free');
    const index = free >= 0 ? free : this.#evict();
    return index === undefined ? undefined : this.#hold(index, positions);
  }

  /** That very slot with what it holds; undefined when it is in somebody's hands. */
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
   * Positions [0, n) of a slot that are, or will be, somebody's. A decode step writes to every slot that it spans: to one
   * that takes no part in it, right behind these.
   */
  claimed(slot: number): number {
    return this.#claimed[slot] as number;
  }

  /** Its holder says how many positions are somebody's from now on. */
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
      const [ofA, ofB] = [this.rowBytes(a, row, 0, end), this.rowBytes(b, row, 0, end)];
      spare ??= new Uint8Array(ofA.length);
      spare.set(ofA);
      ofA.set(ofB);
      ofB.set(spare);
    }
  }

  /**
   * Positions [start, end) of one row of a slot: a view of (end - start) * head_dim elements.
   * @throws TypeError for a pool of float16, which has no such view.
   */
  row(slot: number, row: number, start: number, end: number): Float32Array {
    const view = this.#view(slot, row, start, end);
    if (view instanceof Float32Array) return view;
    throw new TypeError('a pool of float16 holds no 32-bit floats');
  }

  /** The same, as the bytes that lie there. */
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

  /** Called when nothing runs: a slot that is held and nobody's is a leak. */
  assertConserved(held: number): void {
    const counted = this.#states.filter((state) => state === 'held').length;
    if (counted !== this.#held || this.#held !== held) {
      throw new ServingError('internal', `KV slots leaked: ${counted} of ${this.slots} are held, by ${held} holders`);
    }
  }

  #leave(take: () => boolean): void {
    const index = this.#line.findIndex((other) => other.take === take);
    if (index >= 0) this.#line.splice(index, 1);
  }

  #hold(index: number, positions: number): KvSlot {
    this.#states[index] = 'held';
    this.#claimed[index] = positions;
    this.#held++;
    let held = true;
    const giveBack = (state: State) => {
      if (!held) return;
      held = false;
      this.#held--;
      this.#states[index] = state;
      if (state === 'free') this.#claimed[index] = 0;
      this.offer();
    };
    return { index, release: () => giveBack('free'), keep: () => giveBack('kept') };
  }
}

const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
