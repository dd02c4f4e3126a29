/**
 * Who holds which of a worker's KV caches: `slots` sequences of up to `capacity` positions each. Only the pool counts
 * slots; a part that computes or decodes a sequence holds a {@link KvSlot}. Where the caches lie is known to the store
 * (store.ts). A slot that is given back while the store still works on it stays held until that work has ended.
 */
import { ServingError } from '../process/errors.ts';
import { CountedStore } from './counted-store.ts';
import type { KvLayout, KvType } from './layout.ts';
import type { KvStore } from './store.ts';

/** A slot that is held. Releasing or keeping it a second time does nothing. */
export interface KvSlot {
  readonly index: number;
  /** Gives the slot back empty. */
  release(): void;
  /** Gives the slot back filled: it can be taken again with its content, until the pool needs the room. */
  keep(): void;
}

/**
 * Called when all slots are taken: gives up a kept slot and returns its index; undefined if it has none to give up.
 * @param tenant whose prompt needs the slot, where that is known.
 */
type PressureListener = (tenant: string | undefined) => number | undefined;

type SlotState = 'free' | 'kept' | 'held';

/** @typeParam M the store whose slots are counted. */
export class KvPool<M extends KvStore = KvStore> {
  /** Where the caches lie, for the engine, which binds them to its runs. All others use {@link store}. */
  readonly memory: M;
  /** Moves positions in, out and between slots. A slot is not given to another holder while this works on it. */
  readonly store: KvStore;
  readonly #uses: CountedStore;
  readonly #states: SlotState[];
  /** Per slot: positions from 0 that only its holder may write. */
  readonly #claimed: Int32Array;
  /** Slots in the state `held`. */
  #held = 0;
  /** Slots that nobody holds any more, but on which the store still works: the state in which they will be. */
  readonly #leaving = new Map<number, SlotState>();
  readonly #pressureListeners = new Set<PressureListener>();
  /** Waiting for a slot, in order of arrival. */
  readonly #line: { readonly sinceMs: number; readonly tryReserve: () => boolean }[] = [];
  #serving = false;

  constructor(memory: M) {
    this.memory = memory;
    this.#uses = new CountedStore(memory, (slot) => this.#onUnused(slot));
    this.store = this.#uses;
    this.#states = new Array<SlotState>(memory.slots).fill('free');
    this.#claimed = new Int32Array(memory.slots);
  }

  get layout(): KvLayout {
    return this.memory.layout;
  }

  get slots(): number {
    return this.memory.slots;
  }

  /** Positions of a slot. */
  get capacity(): number {
    return this.memory.capacity;
  }

  get type(): KvType {
    return this.memory.type;
  }

  /** Slots that can be reserved now, kept ones included. */
  get free(): number {
    return this.slots - this.#held;
  }

  /** Slots that are held, or were until now and are still worked on. */
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
   * @param tenant whose content that is, for those who give up kept slots.
   */
  reserve(positions: number, tenant?: string): KvSlot | undefined {
    const free = this.#states.indexOf('free');
    const index = free >= 0 ? free : this.#evictKept(tenant);
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

  /**
   * Operations of the {@link store} so far that wrote to a slot: while the number is the same, its content is too, but
   * for what runs of the engine write.
   */
  writes(slot: number): number {
    return this.#uses.writes(slot);
  }

  /** Called when nothing runs: a slot that is held without a holder is a leak. @param held slots that parts hold. */
  assertConserved(held: number): void {
    const counted = this.#states.filter((state) => state === 'held').length;
    const leaving = this.#leaving.size;
    if (counted !== this.#held || counted - leaving !== held) {
      throw new ServingError(
        'internal',
        `KV slots leaked: ${counted - leaving} of ${this.slots} are held, but holders account for ${held}`,
      );
    }
  }

  /** Index of a kept slot that a listener gave up. */
  #evictKept(tenant: string | undefined): number | undefined {
    for (const listener of this.#pressureListeners) {
      const index = listener(tenant);
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
      if (this.#uses.isUsed(index)) this.#leaving.set(index, state);
      else this.#vacate(index, state);
    };
    return { index, release: () => end('free'), keep: () => end('kept') };
  }

  #onUnused(index: number): void {
    const state = this.#leaving.get(index);
    if (state === undefined) return;
    this.#leaving.delete(index);
    this.#vacate(index, state);
  }

  #vacate(index: number, state: SlotState): void {
    this.#held--;
    this.#states[index] = state;
    if (state === 'free') this.#claimed[index] = 0;
    this.offer();
  }
}
