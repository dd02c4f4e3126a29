/** The order in which sequences get slots. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { SlotQueue } from '../../services/decode/slot-queue.ts';
import { CpuKvStore } from '../../services/lib/kv/cpu-store.ts';
import { KvPool, type KvSlot } from '../../services/lib/kv/pool.ts';
import { settle } from '../support/fake-engine.ts';

const LAYOUT = { layers: 1, kvHeads: 1, headDim: 1 };
const NEVER = new AbortController().signal;

describe('SlotQueue', () => {
  const action = fc.oneof(
    { weight: 3, arbitrary: fc.constant({ do: 'ask' } as const) },
    { weight: 2, arbitrary: fc.record({ do: fc.constant('release' as const), which: fc.nat(9) }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('abort' as const), which: fc.nat(9) }) },
  );

  test('each slot has one holder at a time, in order of arrival, within the bound, and no slot is lost', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 4 }),
        fc.nat(4),
        fc.array(action, { maxLength: 50, size: 'max' }),
        async (slots, limit, actions) => {
          const pool = new KvPool(new CpuKvStore(LAYOUT, slots, 4));
          const queue = new SlotQueue(pool, limit);
          const waiting: { name: number; abort: AbortController }[] = [];
          const held: { name: number; slot: KvSlot }[] = [];
          let names = 0;
          const ask = () => {
            const asker = { name: names++, abort: new AbortController() };
            const full = held.length === slots && waiting.length >= limit;
            waiting.push(asker);
            const outcome = queue.reserve(2, asker.abort.signal).then(
              (slot) => {
                // First come, first served.
                expect(waiting.shift()).toBe(asker);
                held.push({ name: asker.name, slot });
              },
              (error: unknown) => {
                if (!asker.abort.signal.aborted) {
                  expect(full).toBe(true);
                  expect(error).toMatchObject({ code: 'saturated', retryAfterSeconds: 1 });
                  waiting.splice(waiting.indexOf(asker), 1);
                } else expect(error).toBe(asker.abort.signal.reason);
              },
            );
            return outcome;
          };
          const outcomes: Promise<void>[] = [];
          for (const action of actions) {
            if (action.do === 'ask') outcomes.push(ask());
            else if (action.do === 'release' && held.length > 0) {
              const [released] = held.splice(action.which % held.length, 1);
              released?.slot.release();
              released?.slot.release(); // harmless
            } else if (action.do === 'abort' && waiting.length > 0) {
              waiting.splice(action.which % waiting.length, 1)[0]?.abort.abort(new Error('gone'));
            }
            await settle();
            expect(new Set(held.map(({ slot }) => slot.index)).size).toBe(held.length);
            expect(queue.granted).toBe(held.length);
            expect(queue.waiting).toBe(waiting.length);
            expect(waiting.length === 0 || held.length === slots).toBe(true); // nobody waits beside a free slot
            pool.assertConserved(held.length);
          }
          while (held.length > 0) {
            held.pop()?.slot.release();
            await settle();
          }
          await Promise.all(outcomes);
          expect(waiting).toEqual([]);
          pool.assertConserved(0);
        },
      ),
      { numRuns: 200 },
    );
  });

  test('a caller that has left already gets no slot', async () => {
    const pool = new KvPool(new CpuKvStore(LAYOUT, 1, 4));
    const reason = new Error('gone');
    await expect(new SlotQueue(pool, 1).reserve(2, AbortSignal.abort(reason))).rejects.toBe(reason);
    pool.assertConserved(0);
  });

  test('a caller that leaves while it waits is skipped, and the next one gets the slot', async () => {
    const pool = new KvPool(new CpuKvStore(LAYOUT, 1, 4));
    const queue = new SlotQueue(pool, 2);
    const first = await queue.reserve(2, NEVER);
    const impatient = new AbortController();
    const gone = queue.reserve(2, impatient.signal);
    const patient = queue.reserve(2, NEVER);
    impatient.abort(new Error('hung up'));
    await expect(gone).rejects.toThrowError('hung up');
    first.release();
    const slot = await patient;
    expect(slot.index).toBe(0);
    slot.release();
    pool.assertConserved(0);
  });

  test('a caller that leaves with a slot takes no other caller out of the queue', async () => {
    const pool = new KvPool(new CpuKvStore(LAYOUT, 1, 4));
    const queue = new SlotQueue(pool, 2);
    const first = await queue.reserve(2, NEVER);
    const caller = new AbortController();
    const second = queue.reserve(2, caller.signal);
    const third = queue.reserve(2, NEVER);
    first.release();
    caller.abort(new Error('hung up'));
    expect(queue.waiting).toBe(1);
    (await second).release();
    (await third).release();
    pool.assertConserved(0);
  });

  test('releasing a slot twice takes nothing from its next holder', async () => {
    const pool = new KvPool(new CpuKvStore(LAYOUT, 1, 4));
    const queue = new SlotQueue(pool, 1);
    const first = await queue.reserve(2, NEVER);
    const waiting = queue.reserve(2, NEVER);
    first.release();
    const second = await waiting;
    first.release();
    expect(pool.free).toBe(0);
    second.release();
    expect(pool.free).toBe(1);
  });

  test('a full pool without a queue refuses and names the setting', async () => {
    const pool = new KvPool(new CpuKvStore(LAYOUT, 1, 4));
    const queue = new SlotQueue(pool, 0);
    await queue.reserve(2, NEVER);
    await expect(queue.reserve(2, NEVER)).rejects.toThrowError(
      expect.objectContaining({ code: 'saturated', message: expect.stringContaining('--queue-sequences 0') }),
    );
  });
});
