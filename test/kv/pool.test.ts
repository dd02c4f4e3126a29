/** The pool of KV slots: who holds which, and where their memory lies. */
import { totalmem } from 'node:os';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { rowCount } from '../../services/lib/kv/layout.ts';
import { KvPool, type KvSlot } from '../../services/lib/kv/pool.ts';

const LAYOUT = { layers: 2, kvHeads: 2, headDim: 4 };

describe('reserving', () => {
  const which = fc.nat(20);
  const action = fc.oneof(
    {
      weight: 3,
      arbitrary: fc.record({ do: fc.constant('reserve' as const), positions: fc.integer({ min: 1, max: 4 }) }),
    },
    { weight: 2, arbitrary: fc.record({ do: fc.constantFrom('release' as const, 'keep' as const), which }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('take' as const), slot: fc.nat(5) }) },
  );

  test('the pool gives the lowest free slot, then kept ones, and counts correctly in any order of releases', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 5 }),
        fc.array(action, { maxLength: 40, size: 'max' }),
        (slots, actions) => {
          const pool = new KvPool(LAYOUT, slots, 4);
          const everGiven: KvSlot[] = [];
          const held = new Map<number, KvSlot>();
          /** Oldest first. */
          const kept: number[] = [];
          const claimed = new Array<number>(slots).fill(0);
          let told = 0;
          let given = 0;
          pool.onPressure(() => kept.shift());
          pool.wait(() => {
            told++;
            return false;
          });
          const hold = (slot: KvSlot | undefined, positions: number) => {
            if (slot === undefined) return;
            everGiven.push(slot);
            held.set(slot.index, slot);
            claimed[slot.index] = positions;
          };
          for (const action of actions) {
            if (action.do === 'reserve') {
              const free = claimed.findIndex((_, slot) => !held.has(slot) && !kept.includes(slot));
              const expected = free >= 0 ? free : kept[0];
              const slot = pool.reserve(action.positions);
              expect(slot?.index).toBe(expected);
              hold(slot, action.positions);
            } else if (action.do === 'take') {
              const isThere = action.slot < slots && !held.has(action.slot);
              const slot = pool.take(action.slot, 2);
              expect(slot?.index).toBe(isThere ? action.slot : undefined);
              if (isThere && kept.includes(action.slot)) kept.splice(kept.indexOf(action.slot), 1);
              hold(slot, 2);
            } else if (everGiven.length > 0) {
              // Any slot that was ever given out: some are released again after another holder got them.
              const slot = everGiven[action.which % everGiven.length] as KvSlot;
              slot[action.do]();
              if (held.get(slot.index) === slot) {
                given++;
                held.delete(slot.index);
                if (action.do === 'keep') kept.push(slot.index);
                else claimed[slot.index] = 0;
              }
            }
            expect(told).toBe(given);
            expect(pool.reserved).toBe(held.size);
            expect(pool.free).toBe(slots - held.size);
            for (let slot = 0; slot < slots; slot++) {
              expect(pool.isKept(slot)).toBe(kept.includes(slot));
              expect(pool.isHeld(slot)).toBe(held.has(slot));
              // A kept slot still claims its content.
              expect(pool.claimed(slot)).toBe(claimed[slot]);
            }
            pool.assertConserved(held.size);
          }
        },
      ),
    );
  });

  test('all listeners hear that the pool is full, in order of subscription, until one gives up a slot', () => {
    const pool = new KvPool(LAYOUT, 2, 4);
    const slots = [pool.reserve(1), pool.reserve(1)] as [KvSlot, KvSlot];
    const heard: string[] = [];
    const unsubscribe = pool.onPressure(() => {
      heard.push('first');
      return undefined;
    });
    pool.onPressure(() => {
      heard.push('second');
      return 1;
    });
    for (const slot of slots) slot.keep();
    expect(pool.reserve(1)?.index).toBe(1);
    expect(heard).toEqual(['first', 'second']);
    unsubscribe();
    expect(pool.reserve(1)?.index).toBe(1);
    expect(heard).toEqual(['first', 'second', 'second']);
  });

  test('a leak is reported with its counts', () => {
    const pool = new KvPool(LAYOUT, 3, 4);
    pool.reserve(1);
    expect(() => pool.assertConserved(0)).toThrowError('KV slots leaked: 1 of 3 are held, but holders account for 0');
  });
});

describe('memory', () => {
  test("a pool larger than the machine's memory is refused with the arithmetic", () => {
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

  /** Every element is its own index; `rows` are those of a slot at positions [start, end). */
  function numbered(slots: number) {
    const pool = new KvPool(LAYOUT, slots, 3);
    for (const { key, value } of pool.layers) {
      for (const tensor of [key, value]) tensor.set(tensor.map((_, i) => i));
    }
    const rows = (slot: number, start: number, end: number) =>
      Array.from({ length: rowCount(LAYOUT) }, (_, row) => [...pool.row(slot, row, start, end)]);
    return { pool, rows };
  }

  test('a copy changes exactly the positions asked for, in all rows', () => {
    const { pool, rows } = numbered(2);
    const [before, rest] = [rows(0, 0, 3), rows(1, 2, 3)];
    pool.copy(0, 1, 2);
    expect(rows(1, 0, 2)).toEqual(rows(0, 0, 2));
    expect(rows(1, 2, 3)).toEqual(rest);
    expect(rows(0, 0, 3)).toEqual(before);
  });

  test('a swap exchanges exactly the positions asked for, in all rows', () => {
    const { pool, rows } = numbered(3);
    const [a, b] = [rows(0, 0, 2), rows(2, 0, 2)];
    const rest = [rows(0, 2, 3), rows(1, 0, 3), rows(2, 2, 3)];
    pool.swap(0, 2, 2);
    expect([rows(0, 0, 2), rows(2, 0, 2)]).toEqual([b, a]);
    expect([rows(0, 2, 3), rows(1, 0, 3), rows(2, 2, 3)]).toEqual(rest);
  });

  test('positions and rows outside the pool are refused', () => {
    const pool = new KvPool(LAYOUT, 1, 3);
    expect(() => pool.row(0, 8, 0, 1)).toThrowError(RangeError);
    expect(() => pool.row(0, 0, -1, 1)).toThrowError(RangeError);
    expect(() => pool.row(0, 0, 2, 4)).toThrowError(RangeError);
  });
});
