/** Who gets the next free KV slot: first come, first served, with a bound on those that wait. */
import type { KvPool, KvSlot } from '../lib/kv/pool.ts';
import { ServingError } from '../lib/process/errors.ts';
import { metrics } from '../lib/process/metrics.ts';

interface Waiter {
  readonly positions: number;
  grant(slot: KvSlot): void;
}

export class SlotAdmission {
  readonly #pool: KvPool;
  readonly #limit: number;
  readonly #waiting: Waiter[] = [];
  #granted = 0;

  /** @param limit sequences that may wait. */
  constructor(pool: KvPool, limit: number) {
    this.#pool = pool;
    this.#limit = limit;
    pool.onFree(() => this.#passOn());
  }

  get waiting(): number {
    return this.#waiting.length;
  }

  /** Slots in the hands of callers. */
  get granted(): number {
    return this.#granted;
  }

  /**
   * A slot, now or when it is this caller's turn. Giving it back passes it on.
   * @param positions that it will hold before it decodes.
   * @throws ServingError saturated when too many wait; the signal's reason.
   */
  async reserve(positions: number, signal: AbortSignal): Promise<KvSlot> {
    signal.throwIfAborted();
    const free = this.#waiting.length === 0 ? this.#pool.reserve(positions) : undefined;
    if (free) return this.#owned(free);
    if (this.#waiting.length >= this.#limit) {
      throw new ServingError(
        'saturated',
        `all ${this.#pool.slots} slots are taken and ${this.#waiting.length} sequences wait (--queue-sequences ${this.#limit})`,
        { retryAfterSeconds: 1, knob: 'queue-sequences' },
      );
    }
    return new Promise((resolve, reject) => {
      const leave = () => {
        this.#waiting.splice(this.#waiting.indexOf(waiter), 1);
        this.#observe();
        reject(signal.reason);
      };
      const waiter: Waiter = {
        positions,
        grant: (slot) => {
          signal.removeEventListener('abort', leave);
          resolve(this.#owned(slot));
        },
      };
      signal.addEventListener('abort', leave, { once: true });
      this.#waiting.push(waiter);
      this.#observe();
    });
  }

  #owned(slot: KvSlot): KvSlot {
    this.#granted++;
    this.#observe();
    let held = true;
    const giveBack = (how: 'release' | 'keep') => {
      if (!held) return;
      held = false;
      this.#granted--;
      slot[how]();
    };
    return { index: slot.index, release: () => giveBack('release'), keep: () => giveBack('keep') };
  }

  /** Gives free slots to those who wait. */
  #passOn(): void {
    for (let next = this.#waiting[0]; next !== undefined; next = this.#waiting[0]) {
      const slot = this.#pool.reserve(next.positions);
      if (slot === undefined) break;
      this.#waiting.shift();
      next.grant(slot);
    }
    this.#observe();
  }

  #observe(): void {
    metrics.waiting.set(this.#waiting.length);
    metrics.kvUsage.set(this.#pool.reserved / this.#pool.slots);
  }
}
