/**
 * The slot in which prompts are computed where the slot of many cannot be bound to a run by itself: what lies in it,
 * and what has to be copied into and out of it. A prompt of many chunks stays in it from chunk to chunk, so that each
 * of its positions is copied once, to its place. Copying the whole beginning in and out for every chunk would take time
 * that is quadratic in the length of the prompt.
 */
import type { KvPool } from '../kv/pool.ts';

/** The staging slot holds the same as a slot of the pool at positions [0, end). */
interface Twin {
  readonly slot: number;
  readonly end: number;
  /** The pool's count of writes to the slot when that was so. */
  readonly writes: number;
}

export class StagingSlot {
  /** Its index in the store, after the slots of the pool. */
  readonly index: number;
  readonly #pool: KvPool;
  /** Undefined where the content is unknown. */
  #twin: Twin | undefined;

  constructor(pool: KvPool, index: number) {
    this.#pool = pool;
    this.index = index;
  }

  /** Brings positions [0, end) of a slot here, as far as they are not here already. */
  async bring(slot: number, end: number): Promise<void> {
    const here = Math.min(end, this.#sharedWith(slot));
    const writes = this.#pool.writes(slot);
    this.#twin = undefined; // until the copy has been made
    if (here < end) await this.#pool.store.copy(slot, this.index, end, here);
    this.#twin = { slot, end, writes };
  }

  /**
   * Copies positions [0, end) to their place after a run that wrote [past, end) here.
   * @param slot the place; what {@link bring} brought was its own, or that of another slot.
   */
  async place(slot: number, past: number, end: number): Promise<void> {
    const start = Math.min(past, this.#sharedWith(slot));
    const writes = this.#pool.writes(slot) + 1; // this copy is one
    await this.#pool.store.copy(this.index, slot, end, start);
    this.#twin = { slot, end, writes };
  }

  /** A run writes to a position of a slot of the pool, and perhaps to later ones. */
  written(slot: number, position: number): void {
    if (this.#twin?.slot === slot && position < this.#twin.end) this.#twin = { ...this.#twin, end: position };
  }

  /** The number n of positions [0, n) that are the same here as in a slot. */
  #sharedWith(slot: number): number {
    const twin = this.#twin;
    return twin?.slot === slot && twin.writes === this.#pool.writes(slot) ? twin.end : 0;
  }
}
