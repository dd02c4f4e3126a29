/** The pool of KV slots: who holds which. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { CpuKvStore } from '../../services/lib/kv/cpu-store.ts';
import { KvPool, type KvSlot } from '../../services/lib/kv/pool.ts';
import { gate } from '../support/fake-engine.ts';
import { SlowStore } from '../support/slow-store.ts';

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
          const pool = new KvPool(new CpuKvStore(LAYOUT, slots, 4));
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
    const pool = new KvPool(new CpuKvStore(LAYOUT, 2, 4));
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

  test('a slot that is given back while the store works on it is free or kept when that work has ended', async () => {
    const ended = gate();
    const pool = new KvPool(new SlowStore(new CpuKvStore(LAYOUT, 3, 4), () => ended.opened));
    const [a, b, c] = [pool.reserve(1), pool.reserve(1), pool.reserve(1)] as [KvSlot, KvSlot, KvSlot];
    const work = [
      pool.store.copy(a.index, b.index, 2),
      pool.store.read(b.index, { start: 0, end: 1, rowStart: 0, rowEnd: 1 }),
    ];
    let offers = 0;
    pool.wait(() => {
      offers++;
      return false;
    });
    a.keep();
    b.release();
    c.release();
    expect([0, 1, 2].map((slot) => pool.isHeld(slot))).toEqual([true, true, false]);
    expect([offers, pool.take(0, 1), pool.take(1, 1), pool.reserved]).toEqual([1, undefined, undefined, 2]);
    pool.assertConserved(0);
    ended.open();
    await Promise.all(work);
    expect([0, 1, 2].map((slot) => [pool.isHeld(slot), pool.isKept(slot)])).toEqual([
      [false, true],
      [false, false],
      [false, false],
    ]);
    expect([offers, pool.claimed(0), pool.claimed(1)]).toEqual([3, 1, 0]);
    pool.assertConserved(0);
  });

  test('a slot is free although work on it has failed', async () => {
    const pool = new KvPool(new SlowStore(new CpuKvStore(LAYOUT, 1, 4), () => Promise.reject(new Error('lost'))));
    const slot = pool.reserve(1) as KvSlot;
    const writing = pool.store.write(0, { start: 0, end: 1, rowStart: 0, rowEnd: 1 }, new Uint8Array(16));
    slot.release();
    expect(pool.isHeld(0)).toBe(true);
    await expect(writing).rejects.toThrowError('lost');
    expect(pool.isHeld(0)).toBe(false);
  });

  test('the memory is freed when the last work on it has ended, and no more work is begun', async () => {
    const ended = gate();
    const memory = new SlowStore(new CpuKvStore(LAYOUT, 1, 4), () => ended.opened);
    const { store } = new KvPool(memory);
    const range = { start: 0, end: 1, rowStart: 0, rowEnd: 1 };
    const reading = store.read(0, range);
    const disposing = store.dispose();
    expect(() => store.read(0, range)).toThrowError(expect.objectContaining({ code: 'draining' }));
    expect(() => store.copy(0, 0, 1)).toThrowError(expect.objectContaining({ code: 'draining' }));
    ended.open();
    await Promise.all([reading, disposing, store.dispose()]);
    expect(memory.disposals).toBe(1);
    expect(memory.violations.filter((words) => words.startsWith('disposed'))).toEqual([]);
  });

  test('a leak is reported with its counts', () => {
    const pool = new KvPool(new CpuKvStore(LAYOUT, 3, 4));
    pool.reserve(1);
    expect(() => pool.assertConserved(0)).toThrowError('KV slots leaked: 1 of 3 are held, but holders account for 0');
  });
});
