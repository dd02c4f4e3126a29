/**
 * A store that knows which slots its operations are still using, and how often each has been written to. The pool gives
 * no slot to another holder before they have ended: a holder may leave at any time (its caller hangs up, its lease
 * expires, its worker drains), also in the middle of a copy that a device makes on its own time.
 */
import { ServingError } from '../process/errors.ts';
import type { KvLayout, KvRange, KvType } from './layout.ts';
import type { KvStore, RowWriter } from './store.ts';

export class CountedStore implements KvStore {
  readonly #memory: KvStore;
  /** Called when the last operation on a slot has ended. */
  readonly #onUnused: (slot: number) => void;
  /** By slot: operations that have not ended. */
  readonly #uses = new Map<number, number>();
  /** By slot: operations so far that wrote to it. */
  readonly #writes = new Map<number, number>();
  #closed = false;
  #wake: (() => void) | undefined;

  constructor(memory: KvStore, onUnused: (slot: number) => void) {
    this.#memory = memory;
    this.#onUnused = onUnused;
  }

  get layout(): KvLayout {
    return this.#memory.layout;
  }

  get slots(): number {
    return this.#memory.slots;
  }

  get capacity(): number {
    return this.#memory.capacity;
  }

  get type(): KvType {
    return this.#memory.type;
  }

  /** Whether an operation on the slot has not ended. */
  isUsed(slot: number): boolean {
    return this.#uses.has(slot);
  }

  /** Operations so far that wrote to the slot. What the engine's runs write is not counted. */
  writes(slot: number): number {
    return this.#writes.get(slot) ?? 0;
  }

  read(slot: number, range: KvRange): readonly Uint8Array[] | Promise<readonly Uint8Array[]> {
    this.#assertOpen();
    const read = this.#memory.read(slot, range);
    return read instanceof Promise ? this.#counted(read, [slot]) : read;
  }

  write(slot: number, range: KvRange, rows: Uint8Array | RowWriter): void | Promise<void> {
    this.#assertOpen();
    this.#countWrite(slot);
    const written = this.#memory.write(slot, range, rows);
    return written && this.#counted(written, [slot]);
  }

  copy(from: number, to: number, end: number, start = 0): void | Promise<void> {
    this.#assertOpen();
    this.#countWrite(to);
    const copied = this.#memory.copy(from, to, end, start);
    return copied && this.#counted(copied, [from, to]);
  }

  swap(a: number, b: number, end: number): void | Promise<void> {
    this.#assertOpen();
    this.#countWrite(a);
    this.#countWrite(b);
    const swapped = this.#memory.swap(a, b, end);
    return swapped && this.#counted(swapped, [a, b]);
  }

  /** Refuses further operations and frees the memory when those that are under way have ended. */
  async dispose(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#uses.size > 0) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    await this.#memory.dispose();
  }

  #assertOpen(): void {
    if (this.#closed) throw new ServingError('draining', 'the engine is shut down');
  }

  #countWrite(slot: number): void {
    this.#writes.set(slot, this.writes(slot) + 1);
  }

  #counted<T>(operation: Promise<T>, slots: readonly number[]): Promise<T> {
    for (const slot of slots) this.#uses.set(slot, (this.#uses.get(slot) ?? 0) + 1);
    return operation.finally(() => {
      for (const slot of slots) this.#ended(slot);
      if (this.#uses.size === 0) this.#wake?.();
    });
  }

  #ended(slot: number): void {
    const left = (this.#uses.get(slot) ?? 0) - 1;
    if (left > 0) this.#uses.set(slot, left);
    else {
      this.#uses.delete(slot);
      this.#onUnused(slot);
    }
  }
}
