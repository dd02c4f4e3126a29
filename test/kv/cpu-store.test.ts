/** KV caches in the process's memory: where each row lies, and what copies and exchanges change. */
import { totalmem } from 'node:os';
import { describe, expect, test } from 'vitest';
import { CpuKvStore } from '../../services/lib/kv/cpu-store.ts';
import type { KvType } from '../../services/lib/kv/layout.ts';
import { row, rowBytes, rows } from '../support/kv-rows.ts';

const LAYOUT = { layers: 2, kvHeads: 2, headDim: 4 };

/** Every element is its own index within its tensor. */
function numbered(slots: number, type: KvType = 'float32'): CpuKvStore {
  const store = new CpuKvStore({ ...LAYOUT, type }, slots, 3);
  for (const { key, value } of store.layers) {
    for (const tensor of [key, value]) tensor.set(tensor.map((_, i) => i));
  }
  return store;
}

test("slots that take more than the machine's memory are refused with the arithmetic", () => {
  const perToken = 2 * 2 * 2 * 4 * 4;
  const slots = Math.ceil((totalmem() * 2) / (perToken * 1024));
  expect(() => new CpuKvStore(LAYOUT, slots, 1024)).toThrowError(
    expect.objectContaining({
      code: 'out_of_memory',
      message: expect.stringMatching(
        new RegExp(`${slots} slots x 1024 tokens x ${perToken} bytes = [\\d.]+ GiB, the machine has [\\d.]+ GiB`),
      ),
    }),
  );
});

test('rows are views of [slot, kv_head, position, head_dim] that do not overlap', () => {
  const store = new CpuKvStore(LAYOUT, 2, 3);
  let next = 1;
  for (let slot = 0; slot < 2; slot++) {
    for (let index = 0; index < 8; index++) {
      const view = row(store, slot, index, 0, 3);
      expect(view).toHaveLength(3 * 4);
      for (let i = 0; i < view.length; i++) view[i] = next++;
    }
  }
  expect(next - 1).toBe(store.layers.length * 2 * (store.layers[0]?.key.length ?? 0));
  // Slot 1, layer 1, V, head 1, positions [1, 3).
  const value = store.layers[1]?.value as Float32Array;
  const at = ((1 * 2 + 1) * 3 + 1) * 4;
  expect(row(store, 1, (1 * 2 + 1) * 2 + 1, 1, 3)).toEqual(value.subarray(at, at + 8));
  expect(new Set(store.layers.flatMap(({ key, value }) => [...key, ...value])).size).toBe(next - 1);
});

test('several rows are read in order, and written from one piece of memory', () => {
  const [from, to] = [numbered(2), new CpuKvStore(LAYOUT, 3, 3)];
  const range = { start: 1, end: 3, rowStart: 2, rowEnd: 7 };
  const read = from.read(1, range);
  expect(read.map((bytes) => [...new Float32Array(bytes.buffer, bytes.byteOffset, 8)])).toEqual(
    rows(from, 1, 1, 3).slice(2, 7),
  );
  to.write(2, range, Buffer.concat(read));
  expect(rows(to, 2, 1, 3).slice(2, 7)).toEqual(rows(from, 1, 1, 3).slice(2, 7));
  const written = to.layers.flatMap(({ key, value }) => [...key, ...value]).filter((element) => element !== 0);
  expect(written).toHaveLength(5 * 2 * 4);
});

test('bytes of another length than the range are refused', () => {
  const range = { start: 0, end: 2, rowStart: 0, rowEnd: 2 };
  expect(() => numbered(1).write(0, range, new Uint8Array(2 * 2 * 16 - 1))).toThrowError(RangeError);
});

describe.each(['float32', 'float16', 'int8-channel'] as const)('slots of %s', (type) => {
  const bytesOf = (store: CpuKvStore, slot: number, start: number, end: number) =>
    Array.from({ length: 8 }, (_, index) => [...rowBytes(store, slot, index, start, end)]);

  test('a copy changes exactly the positions asked for, in all rows', () => {
    const store = numbered(2, type);
    const [before, rest] = [bytesOf(store, 0, 0, 3), bytesOf(store, 1, 2, 3)];
    store.copy(0, 1, 2);
    expect(bytesOf(store, 1, 0, 2)).toEqual(bytesOf(store, 0, 0, 2));
    expect(bytesOf(store, 1, 2, 3)).toEqual(rest);
    expect(bytesOf(store, 0, 0, 3)).toEqual(before);
    const first = bytesOf(store, 1, 0, 1);
    store.write(0, { start: 0, end: 3, rowStart: 0, rowEnd: 8 }, (_, to) => void to.fill(0));
    store.copy(0, 1, 2, 1);
    expect(bytesOf(store, 1, 1, 2)).toEqual(bytesOf(store, 0, 1, 2));
    expect([bytesOf(store, 1, 0, 1), bytesOf(store, 1, 2, 3)]).toEqual([first, rest]);
  });

  test('a swap exchanges exactly the positions asked for, in all rows', () => {
    const store = numbered(3, type);
    const [a, b] = [bytesOf(store, 0, 0, 2), bytesOf(store, 2, 0, 2)];
    const rest = [bytesOf(store, 0, 2, 3), bytesOf(store, 1, 0, 3), bytesOf(store, 2, 2, 3)];
    store.swap(0, 2, 2);
    expect([bytesOf(store, 0, 0, 2), bytesOf(store, 2, 0, 2)]).toEqual([b, a]);
    expect([bytesOf(store, 0, 2, 3), bytesOf(store, 1, 0, 3), bytesOf(store, 2, 2, 3)]).toEqual(rest);
  });
});

test('slots, positions and rows outside the store are refused', () => {
  const store = new CpuKvStore(LAYOUT, 1, 3);
  const read = (slot: number, rowStart: number, start: number, end: number) =>
    store.read(slot, { start, end, rowStart, rowEnd: rowStart + 1 });
  expect(() => read(1, 0, 0, 1)).toThrowError(RangeError);
  expect(() => read(0, 8, 0, 1)).toThrowError(RangeError);
  expect(() => read(0, 0, -1, 1)).toThrowError(RangeError);
  expect(() => read(0, 0, 2, 4)).toThrowError(RangeError);
});
