/**
 * Where the KV caches of a worker lie: in the process's memory (cpu-store.ts) or on a device. A store moves ranges of
 * positions in, out and between slots. It does not know who owns a slot: that is the pool's business.
 *
 * A store in the process's memory answers at once, one on a device with promises. Callers await only what is a promise,
 * so that the first kind costs no turn of the event loop. Whoever asks for an operation must hold the slots that it
 * touches until it has settled.
 */
import type { KvLayout, KvRange } from './layout.ts';

export interface KvStore {
  readonly layout: KvLayout;
  readonly slots: number;
  /** Positions of a slot. */
  readonly capacity: number;
  /** The type of the values that lie here, and that `read` and `write` carry, little-endian. */
  readonly floats: 'float32' | 'float16';

  /**
   * Rows [rowStart, rowEnd) of positions [start, end) of a slot: for each row the bytes of `[end - start, head_dim]`.
   * The memory may be the slot's own: it is valid until the slot changes, and not to be written to.
   */
  read(slot: number, range: KvRange): readonly Uint8Array[] | Promise<readonly Uint8Array[]>;

  /** Writes what `read` gives, one row after the other in `bytes`, which may be used again when this has settled. */
  write(slot: number, range: KvRange, bytes: Uint8Array): void | Promise<void>;

  /** Copies positions [0, end) of all rows from one slot to another. */
  copy(from: number, to: number, end: number): void | Promise<void>;

  /** Exchanges positions [0, end) of all rows of two slots. */
  swap(a: number, b: number, end: number): void | Promise<void>;

  /** Frees the memory. Nothing may be asked of the store afterwards. */
  dispose(): void | Promise<void>;
}
