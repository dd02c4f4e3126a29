/**
 * A store whose operations end in later turns of the event loop, as those of a device do, and which notes every
 * operation on a slot that was not its holder's from its beginning to its end.
 */
import type { CpuKvStore } from '../../services/lib/kv/cpu-store.ts';
import { type KvRange, positionBytes, rowCount } from '../../services/lib/kv/layout.ts';
import type { KvPool, KvSlot } from '../../services/lib/kv/pool.ts';
import type { KvStore, RowWriter } from '../../services/lib/kv/store.ts';
import { settle } from './fake-engine.ts';

export class SlowStore implements KvStore {
  readonly memory: CpuKvStore;
  /** What went wrong, in words. */
  readonly violations: string[] = [];
  /** Operations that have begun and not ended. */
  underWay = 0;
  disposals = 0;
  readonly #wait: () => Promise<void>;
  #pool: KvPool | undefined;
  /** By slot: how often it was given to a holder. */
  readonly #holders: number[];

  /** @param wait what an operation waits for before it takes effect, and again before it ends. */
  constructor(memory: CpuKvStore, wait: () => Promise<void>) {
    this.memory = memory;
    this.#wait = wait;
    this.#holders = new Array<number>(memory.slots).fill(0);
  }

  get layout() {
    return this.memory.layout;
  }
  get slots() {
    return this.memory.slots;
  }
  get capacity() {
    return this.memory.capacity;
  }
  get type() {
    return this.memory.type;
  }

  /** Watches to whom a pool over this store gives slots. */
  watch(pool: KvPool): void {
    this.#pool = pool;
    const noted = (slot: KvSlot | undefined) => {
      if (slot) this.#holders[slot.index]!++;
      return slot;
    };
    const [reserve, take] = [pool.reserve.bind(pool), pool.take.bind(pool)];
    pool.reserve = (positions) => noted(reserve(positions));
    pool.take = (index, positions) => noted(take(index, positions));
  }

  read(slot: number, range: KvRange): Promise<Uint8Array[]> {
    return this.#operate('read', [slot], [], () => this.memory.read(slot, range).map((row) => Uint8Array.from(row)));
  }

  write(slot: number, range: KvRange, rows: Uint8Array | RowWriter): Promise<void> {
    // As a device does, this takes the content at once, and puts it into the slot later.
    const rowBytes = ((range.end - range.start) * positionBytes(this.layout)) / rowCount(this.layout);
    const bytes = new Uint8Array((range.rowEnd - range.rowStart) * rowBytes);
    if (rows instanceof Uint8Array) bytes.set(rows);
    else for (let i = 0; i * rowBytes < bytes.length; i++) rows(i, bytes.subarray(i * rowBytes, (i + 1) * rowBytes));
    return this.#operate('write', [], [slot], () => this.memory.write(slot, range, bytes));
  }

  copy(from: number, to: number, end: number, start = 0): Promise<void> {
    return this.#operate('copy', [from], [to], () => this.memory.copy(from, to, end, start));
  }

  swap(a: number, b: number, end: number): Promise<void> {
    return this.#operate('swap', [], [a, b], () => this.memory.swap(a, b, end));
  }

  dispose(): void {
    this.disposals++;
    if (this.underWay > 0) this.violations.push(`disposed of while ${this.underWay} operations were under way`);
  }

  async #operate<T>(name: string, read: number[], written: number[], act: () => T): Promise<T> {
    const slots = [...read, ...written];
    const holders = slots.map((slot) => this.#holders[slot]);
    const check = (when: string) => {
      for (const [i, slot] of slots.entries()) {
        const allowed = this.#pool?.isHeld(slot) || (this.#pool?.isKept(slot) && read.includes(slot));
        if (!allowed) this.violations.push(`${name} of slot ${slot}, which nobody holds ${when}`);
        if (this.#holders[slot] !== holders[i]) this.violations.push(`${name} of slot ${slot}, another's ${when}`);
      }
    };
    this.underWay++;
    check('when it begins');
    await this.#wait();
    check('when it takes effect');
    const result = act();
    await this.#wait();
    check('when it ends');
    this.underWay--;
    return result;
  }
}

/** Waits for some turns of the event loop. */
export async function turns(count: number): Promise<void> {
  for (let left = count; left > 0; left--) await settle();
}
