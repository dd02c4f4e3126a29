import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { ActiveTenants, leavesSpare, sharingTenants } from '../../../services/gateway/admission/spare-slots.ts';
import type { DecodeRoom } from '../../../services/gateway/workers/worker-pool.ts';
import { simulatedSystem } from '../../support/simulated-system.ts';

const TENANTS = ['a', 'b', 'c', 'd'] as const;
const EQUAL = { weightOf: () => 1 };

/** Whether a tenant leaves the free slots to others, by what all of them hold. */
function leaves(
  tenant: string,
  counts: ReadonlyMap<string, number>,
  decoders: readonly DecodeRoom[],
  active: Iterable<string>,
  spare: number,
  standing: { readonly weightOf: (tenant: string) => number },
): boolean {
  const sharing = sharingTenants(active, counts, standing);
  return leavesSpare(tenant, counts.get(tenant) ?? 0, decoders, sharing, spare, standing);
}

describe('slots that are left free', () => {
  const rooms = fc.array(
    fc
      .record({ slots: fc.integer({ min: 1, max: 16 }), taken: fc.nat(20) })
      .map(({ slots, taken }) => ({ address: 'd', slots, freeSlots: slots - taken })),
    { minLength: 1, maxLength: 3 },
  );
  const held = fc.dictionary(fc.constantFrom(...TENANTS), fc.integer({ min: 1, max: 12 }));
  const active = fc.uniqueArray(fc.constantFrom(...TENANTS));
  const weights = fc.record({ a: fc.integer({ min: 1, max: 9 }), others: fc.integer({ min: 1, max: 9 }) });

  test('a tenant leaves the last slots of workers free if it would get more than its share, and the very last for one without any', () => {
    fc.assert(
      fc.property(rooms, held, active, weights, fc.nat(3), (decoders, counts, names, { a, others }, spare) => {
        const weightOf = (tenant: string) => (tenant === 'a' ? a : others);
        const of = new Map(Object.entries(counts));
        if (!leaves('a', of, decoders, names, spare, { weightOf })) return;
        const all = new Set([...names, ...of.keys(), 'a']);
        const sum = [...all].reduce((total, tenant) => total + weightOf(tenant), 0);
        const slots = decoders.reduce((total, worker) => total + worker.slots, 0);
        const free = decoders.reduce((total, { freeSlots }) => total + Math.max(0, freeSlots), 0);
        const isLast = free <= 1 && names.some((name) => !of.has(name));
        if (!isLast) expect((of.get('a') ?? 0) + 1).toBeGreaterThan((slots * a) / sum);
        expect(of.get('a')).toBeGreaterThan(0);
        for (const worker of decoders) expect(worker.freeSlots).toBeLessThanOrEqual(Math.min(spare, worker.slots / 4));
      }),
    );
  });

  test('a tenant that is alone leaves none free, however many it holds', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 16 }), fc.nat(30), fc.nat(3), (slots, taken, spare) => {
        const decoders = [{ address: 'd', slots, freeSlots: slots - taken }];
        expect(leaves('a', new Map([['a', taken]]), decoders, ['a'], spare, EQUAL)).toBe(false);
      }),
    );
  });

  test.each([
    [8, 1, 1, true],
    [8, 2, 1, false],
    [8, 2, 2, true],
    [8, 3, 9, false], // at most a quarter
    [3, 1, 1, false], // too few to leave one
    [8, 0, 1, true], // in a worker it would have the next one
    [8, 1, 0, false],
  ])('of %i slots %i are free and %i are to be left: a tenant with more than its share waits: %s', (...row) => {
    const [slots, freeSlots, spare, waits] = row;
    const counts = new Map([['a', slots - freeSlots]]);
    expect(leaves('a', counts, [{ address: 'd', slots, freeSlots }], ['a', 'b'], spare, EQUAL)).toBe(waits);
    // Somebody who has none takes it.
    expect(leaves('b', counts, [{ address: 'd', slots, freeSlots }], ['a', 'b'], spare, EQUAL)).toBe(false);
  });

  test.each([
    [13, 1, ['a', 'b', 'c'], false], // two are free
    [14, 1, ['a', 'b', 'c'], true],
    [14, 1, ['a', 'b'], false], // nobody is without any
    [14, 0, ['a', 'b', 'c'], false], // it is without any itself
  ] as const)(
    'of 16 slots %i and %i are held, %j are active: the second leaves the last one: %s',
    (a, b, names, waits) => {
      const counts = new Map([['a', a], ...(b > 0 ? [['b', b] as const] : [])]);
      const free = 16 - a - b;
      const decoders = [
        { address: 'd0', slots: 8, freeSlots: Math.ceil(free / 2) },
        { address: 'd1', slots: 8, freeSlots: Math.floor(free / 2) },
      ];
      expect(leaves('b', counts, decoders, names, 1, EQUAL)).toBe(waits);
    },
  );

  test('a tenant is active for a minute after it has asked', () => {
    const tenants = new ActiveTenants();
    tenants.asked('a', 0);
    tenants.asked('b', 1);
    tenants.asked('a', 59_000);
    expect([...tenants.at(60_000)]).toEqual(['b', 'a']);
    expect([...tenants.at(60_001)]).toEqual(['a']);
    expect([...tenants.at(119_000)]).toEqual([]);
  });
});

describe('tenants beside others that want everything', () => {
  /** @returns waits of a tenant that asks now and then, in ascending order, and the tokens that the others get. */
  async function besideTwo(spareSlots: number) {
    const system = simulatedSystem({ slots: [8, 8], stepMs: 20, prefillTokensPerSecond: 40_000, spareSlots });
    try {
      await system.start();
      for (const tenant of ['x', 'z']) {
        system.ask({ tenant, promptTokens: 64, outputTokens: 48, choices: 64, atOnce: 2 });
      }
      const typed = { tenant: 'typist', promptTokens: 160, cachedTokens: 158, outputTokens: 20, atOnce: 1 };
      for (let passedMs = 0; passedMs < 60_000; passedMs += 1_000) {
        void system.once(typed);
        await system.pass(1_000);
      }
      const waits = system
        .waitsOf('typist')
        .slice(10)
        .toSorted((a, b) => a - b);
      return { waits, tokens: system.service('x', 'z') };
    } finally {
      system.stop();
    }
  }

  test('a tenant below its share has a slot at once, not only after others have made way', async () => {
    const [without, withSpare] = [await besideTwo(0), await besideTwo(1)];
    expect(withSpare.waits).toHaveLength(without.waits.length);
    expect(Math.max(...withSpare.waits)).toBeLessThan(10);
    expect(without.waits[Math.floor(without.waits.length / 2)]).toBeGreaterThan(10);
    // The others have 14 of 16 slots instead of nearly all of them.
    const sum = ([x, z]: readonly number[]) => x! + z!;
    expect(sum(withSpare.tokens)).toBeGreaterThan(0.85 * sum(without.tokens));
  });

  test('a tenant has all slots when it is alone, and again a minute after the last other one has asked', async () => {
    const system = simulatedSystem({ slots: [8, 8], stepMs: 20, prefillTokensPerSecond: 40_000 });
    await system.start();
    system.ask({ tenant: 'x', promptTokens: 64, outputTokens: 48, choices: 64, atOnce: 2 });
    await system.pass(5_000);
    expect(system.held(0)).toBeGreaterThanOrEqual(16);
    void system.once({ tenant: 'typist', promptTokens: 60, outputTokens: 8, atOnce: 1 });
    await system.pass(10_000);
    expect(system.held(0)).toBe(14);
    await system.pass(60_000);
    expect(system.held(0)).toBeGreaterThanOrEqual(16);
  });

  test('a sequence that waits in a full worker has the slot that others leave free in another one', async () => {
    const system = simulatedSystem({ slots: [4, 4], stepMs: 20, prefillTokensPerSecond: 40_000 });
    await system.start();
    // One sequence for each of eight tenants: a ninth one finds all slots taken, by nobody with more than its share.
    const [long, short] = [10_000, 200];
    for (let i = 0; i < 8; i++) {
      const outputTokens = i === 7 ? short : long;
      void system.once({ tenant: `t${i}`, promptTokens: 64, outputTokens, atOnce: 1 });
    }
    await system.pass(1_000);
    const workerOf = (tenant: string) => {
      return system.members[0]!.dispatcher.slotNews.held.find(([name]) => name === tenant)?.[1];
    };
    void system.once({ tenant: 'typist', promptTokens: 60, outputTokens: 8, atOnce: 1 });
    await system.pass(100);
    expect(workerOf('typist')).not.toBe(workerOf('t7'));
    await system.pass(8_000);
    expect(system.finishedOf('t7')).toBe(1);
    expect(system.finishedOf('typist')).toBe(1);
  });

  test('a tenant that asks at another gateway is active here as well', async () => {
    const system = simulatedSystem({ gateways: 2, slots: [8, 8], stepMs: 20, prefillTokensPerSecond: 40_000 });
    await system.start();
    system.ask({ tenant: 'x', promptTokens: 64, outputTokens: 48, choices: 64, atOnce: 2 });
    await system.pass(5_000);
    expect(system.held(0)).toBeGreaterThanOrEqual(16);
    void system.once({ tenant: 'typist', gateway: 1, promptTokens: 60, outputTokens: 8, atOnce: 1 });
    await system.pass(10_000);
    expect(system.finishedOf('typist')).toBe(1);
    expect(system.held(0)).toBe(14);
    await system.pass(60_000);
    expect(system.held(0)).toBeGreaterThanOrEqual(16);
  });
});
