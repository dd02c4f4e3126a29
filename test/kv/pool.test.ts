/** The accountant of KV memory. */
import { totalmem } from 'node:os';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { KvPool, type KvSlot } from '../../services/lib/kv/pool.ts';

const LAYOUT = { layers: 2, kvHeads: 2, headDim: 4 };

describe('reserving', () => {
  test('hands out the lowest free slot and counts right, in any order of reserving and releasing', () => {
    const action = fc.oneof(
      fc.constant('reserve' as const),
      fc.nat(20).map((release) => ({ release })),
    );
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 5 }), fc.array(action, { maxLength: 40 }), (slots, actions) => {
        const pool = new KvPool(LAYOUT, slots, 4);
        const everGiven: KvSlot[] = [];
        const held = new Map<number, KvSlot>();
        for (const action of actions) {
          if (action === 'reserve') {
            const lowest = Array.from({ length: slots }, (_, i) => i).find((i) => !held.has(i));
            const slot = pool.reserve();
            expect(slot?.index).toBe(lowest);
            if (slot) {
              everGiven.push(slot);
              held.set(slot.index, slot);
            }
          } else if (everGiven.length > 0) {
            // Of all slots ever given, so that some are released again after they went to another.
            const slot = everGiven[action.release % everGiven.length] as KvSlot;
            slot.release();
            if (held.get(slot.index) === slot) held.delete(slot.index);
          }
          expect(pool.reserved).toBe(held.size);
          expect(pool.free).toBe(slots - held.size);
          pool.assertConserved(held.size);
        }
      }),
    );
  });

  test('a leak is an error that counts', () => {
    const pool = new KvPool(LAYOUT, 3, 4);
    pool.reserve();
    expect(() => pool.assertConserved(0)).toThrowError('KV slots leaked: 2 free + 1 reserved of 3, 0 held');
  });
});

describe('memory', () => {
  test('a pool that the machine could never hold is refused with the arithmetic', () => {
    const perToken = 2 * 2 * 2 * 4 * 4;
    const slots = Math.ceil((totalmem() * 2) / (perToken * 1024));
    expect(() => new KvPool(LAYOUT, slots, 1024)).toThrowError(
      expect.objectContaining({
        code: 'out_of_memory',
        message: expect.stringMatching(
          new RegExp(`${slots} slots x 1024 tokens x ${perToken} bytes = [\\d.]+ GiB, the machine has [\\d.]+ GiB`),
        ),
      }),
    );
  });

  test('rows are views of [slot, kv_head, position, head_dim] that do not overlap', () => {
    const pool = new KvPool(LAYOUT, 2, 3);
    let next = 1;
    for (let slot = 0; slot < 2; slot++) {
      for (let row = 0; row < 8; row++) {
        const view = pool.row(slot, row, 0, 3);
        expect(view).toHaveLength(3 * 4);
        for (let i = 0; i < view.length; i++) view[i] = next++;
      }
    }
    expect(next - 1).toBe(pool.layers.length * 2 * (pool.layers[0]?.key.length ?? 0));
    // Slot 1, layer 1, V, head 1, positions [1, 3).
    const value = pool.layers[1]?.value as Float32Array;
    const at = ((1 * 2 + 1) * 3 + 1) * 4;
    expect(pool.row(1, (1 * 2 + 1) * 2 + 1, 1, 3)).toEqual(value.subarray(at, at + 8));
    expect(new Set(pool.layers.flatMap(({ key, value }) => [...key, ...value])).size).toBe(next - 1);
  });

  test('positions and rows outside the pool are refused', () => {
    const pool = new KvPool(LAYOUT, 1, 3);
    expect(() => pool.row(0, 8, 0, 1)).toThrowError(RangeError);
    expect(() => pool.row(0, 0, -1, 1)).toThrowError(RangeError);
    expect(() => pool.row(0, 0, 2, 4)).toThrowError(RangeError);
  });
});
