/**
 * The KV caches of a worker, all allocated at start: `slots` sequences of up to `capacity` positions. The only accountant
 * of this memory: whoever computes or decodes a sequence holds a {@link KvSlot}, and nothing else counts slots or bytes.
 */
import { totalmem } from 'node:os';
import { ServingError } from '../process/errors.ts';
import { type KvLayout, positionBytes, rowCount } from './layout.ts';

/** A reserved slot. Releasing twice is harmless. */
export interface KvSlot {
  readonly index: number;
  release(): void;
}

export class KvPool {
  readonly layout: KvLayout;
  readonly slots: number;
  readonly capacity: number;
  /** Per layer: K and V, each float32 [slots, kv_heads, capacity, head_dim]. */
  readonly layers: readonly { readonly key: Float32Array; readonly value: Float32Array }[];
  readonly #free: boolean[];
  #reserved = 0;

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
    this.layers = Array.from({ length: layout.layers }, () => ({
      // Zeroed pages cost nothing until they are written.
      key: new Float32Array(new ArrayBuffer(elements * 4)),
      value: new Float32Array(new ArrayBuffer(elements * 4)),
    }));
    this.#free = new Array<boolean>(slots).fill(true);
  }

  get free(): number {
    return this.slots - this.#reserved;
  }

  get reserved(): number {
    return this.#reserved;
  }

  /** The lowest free slot, so that those in use stay close to a prefix; undefined when all are taken. */
  reserve(): KvSlot | undefined {
    const index = this.#free.indexOf(true);
    if (index < 0) return undefined;
    this.#free[index] = false;
    this.#reserved++;
    let held = true;
    return {
      index,
      release: () => {
        if (!held) return;
        held = false;
        this.#free[index] = true;
        this.#reserved--;
      },
    };
  }

  /** Positions [start, end) of one row of a slot: a view of (end - start) * head_dim elements. */
  row(slot: number, row: number, start: number, end: number): Float32Array {
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

  /** Called when nothing runs: a slot that is neither free nor anybody's is a leak. */
  assertConserved(held: number): void {
    const free = this.#free.filter(Boolean).length;
    if (free + this.#reserved !== this.slots || this.#reserved !== held) {
      throw new ServingError(
        'internal',
        `KV slots leaked: ${free} free + ${this.#reserved} reserved of ${this.slots}, ${held} held`,
      );
    }
  }
}

const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
