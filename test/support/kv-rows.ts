/** What lies in a store in the process's memory, for tests that fill it and look at it. */
import type { CpuKvStore } from '../../services/lib/kv/cpu-store.ts';
import type { KvRows, KvSender } from '../../services/lib/kv/handoff.ts';
import { rowCount } from '../../services/lib/kv/layout.ts';

/** The bytes of positions [start, end) of one row: the slot's own memory. */
export const rowBytes = (store: CpuKvStore, slot: number, row: number, start: number, end: number) =>
  store.read(slot, { start, end, rowStart: row, rowEnd: row + 1 })[0] as Uint8Array;

/** The same memory of a store of float32, as `[end - start, head_dim]`. */
export function row(store: CpuKvStore, slot: number, index: number, start: number, end: number): Float32Array {
  const { buffer, byteOffset, byteLength } = rowBytes(store, slot, index, start, end);
  return new Float32Array(buffer, byteOffset, byteLength / 4);
}

/** All rows of positions [start, end) of a slot, as numbers. */
export const rows = (store: CpuKvStore, slot: number, start: number, end: number) =>
  Array.from({ length: rowCount(store.layout) }, (_, index) => [...row(store, slot, index, start, end)]);

/** Packs positions up to each of the cuts, which ascend. */
export async function packed(sender: KvSender, cuts: readonly number[]): Promise<KvRows[]> {
  const frames: KvRows[] = [];
  for (const [i, end] of cuts.entries())
    for await (const frame of sender.pack(cuts[i - 1] ?? 0, end)) frames.push(frame);
  return frames;
}
