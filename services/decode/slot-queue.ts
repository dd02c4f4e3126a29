/** Gives free KV slots to sequences: first come, first served, with a bound on how many may wait. */
import type { KvPool, KvSlot } from '../lib/kv/pool.ts';
import { ServingError } from '../lib/process/errors.ts';
import { metrics, partOf } from '../lib/process/metrics.ts';

export class SlotQueue {
  readonly #pool: KvPool;
  readonly #limit: number;
  readonly #gauge = partOf(metrics.waiting);
  #waiting = 0;
  #granted = 0;

  /** @param limit sequences that may wait. */
  constructor(pool: KvPool, limit: number) {
    this.#pool = pool;
    this.#limit = limit;
  }

  get waiting(): number {
    return this.#waiting;
  }

  /** Slots that callers hold. */
  get granted(): number {
    return this.#granted;
  }

  /**
   * A slot, now or at this caller's turn.
   * @param positions length of the KV that the slot will hold before the first decode step.
   * @throws ServingError saturated when too many wait; the signal's reason.
   */
  async reserve(positions: number, signal: AbortSignal): Promise<KvSlot> {
    signal.throwIfAborted();
    const free = this.#pool.contended ? undefined : this.#pool.reserve(positions);
    if (free) return this.#owned(free);
    if (this.#waiting >= this.#limit) {
      throw new ServingError(
        'saturated',
        `all ${this.#pool.slots} slots are taken and ${this.#waiting} sequences wait (--queue-sequences ${this.#limit})`,
        { retryAfterSeconds: 1, limit: 'queue-sequences' },
      );
    }
    return new Promise((resolve, reject) => {
      const stopWaiting = () => {
        signal.removeEventListener('abort', leave);
        this.#waiting--;
        this.#observe();
      };
      const leaveLine = this.#pool.wait(() => {
        const slot = this.#pool.reserve(positions);
        if (slot === undefined) return false;
        stopWaiting();
        resolve(this.#owned(slot));
        return true;
      });
      const leave = () => {
        leaveLine();
        stopWaiting();
        reject(signal.reason);
      };
      signal.addEventListener('abort', leave, { once: true });
      this.#waiting++;
      this.#observe();
    });
  }

  #owned(slot: KvSlot): KvSlot {
    this.#granted++;
    this.#observe();
    let held = true;
    const end = (how: 'release' | 'keep') => {
      if (!held) return;
      held = false;
      this.#granted--;
      slot[how]();
      this.#observe();
    };
    return { index: slot.index, release: () => end('release'), keep: () => end('keep') };
  }

  #observe(): void {
    this.#gauge(this.#waiting);
    metrics.kvUsage.set(this.#pool.reserved / this.#pool.slots);
  }
}
