/**
 * Where the KV caches of a worker lie: in the process's memory (cpu-store.ts) or on a device. A store moves ranges of
 * positions in, out and between slots. It does not know who owns a slot: that is the pool's business.
 *
 * A store in the process's memory answers at once, one on a device with promises. Callers await only what is a promise,
 * so that the first kind costs no turn of the event loop. Whoever asks for an operation must hold the slots that it
 * touches until it has settled.
 */
import type { KvLayout, KvRange, KvType } from './layout.ts';

/**
 * Writes one row into memory of its length, aligned for its values.
 * @param index counted from the first row of the range.
 */
export type RowWriter = (index: number, to: Uint8Array) => void;

export interface KvStore {
  readonly layout: KvLayout;
  readonly slots: number;
  /** Positions of a slot. */
  readonly capacity: number;
  /** The type of the values that lie here, and that `read` and `write` carry, little-endian. */
  readonly type: KvType;

  /**
   * Rows [rowStart, rowEnd) of positions [start, end) of a slot: for each row the bytes of `[end - start, head_dim]`.
   * The memory may be the slot's own: it is valid until the slot changes, and not to be written to.
   */
  read(slot: number, range: KvRange): readonly Uint8Array[] | Promise<readonly Uint8Array[]>;

  /**
   * Writes what `read` gives.
   * @param rows one row after the other, which may change when this has settled; or a function that is called for each
   *   row in order before this returns. Values that come in another type are converted where they will lie: by way of
   *   memory of their own a hand-over of int8 would take a fifth more of the receiver's and sender's CPU time.
   */
  write(slot: number, range: KvRange, rows: Uint8Array | RowWriter): void | Promise<void>;

  /** Copies positions [start, end) of all rows from one slot to another; `start` is 0 if not given. */
  copy(from: number, to: number, end: number, start?: number): void | Promise<void>;

  /** Exchanges positions [0, end) of all rows of two slots. */
  swap(a: number, b: number, end: number): void | Promise<void>;

  /** Frees the memory. Nothing may be asked of the store afterwards. */
  dispose(): void | Promise<void>;
}
