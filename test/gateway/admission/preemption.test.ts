import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  type HeldElsewhere,
  type PlacedSequence,
  SlotHolders,
  type Standing,
  sequencesToPreempt,
  sequencesToYield,
} from '../../../services/gateway/admission/preemption.ts';

const SLOTS = 4;
const TENANTS = ['a', 'b', 'c'] as const;
const ADDRESSES = ['d1', 'd2'] as const;
const placed = fc
  .array(fc.record({ tenant: fc.constantFrom(...TENANTS), address: fc.constantFrom(...ADDRESSES) }), { maxLength: 12 })
  .map((list) => list.map((each, order): PlacedSequence => ({ ...each, enteredMs: order >> 1, order })));
const roomOf = (sequences: readonly PlacedSequence[]) =>
  ADDRESSES.map((address) => ({
    address,
    freeSlots: SLOTS - sequences.filter((each) => each.address === address).length,
  }));
const standing = (weightOf: Standing['weightOf'], servedOf: Standing['servedOf'] = () => 0) => ({ weightOf, servedOf });
const EQUAL = standing(() => 1);
const heldBy = (sequences: readonly PlacedSequence[], tenant: string) =>
  sequences.filter((each) => each.tenant === tenant).length;

test('sequences make way only for a tenant that then holds no more for its weight than the one that lost them', () => {
  fc.assert(
    fc.property(placed, fc.constantFrom(...TENANTS), fc.nat(5), fc.nat({ max: 3 }), (all, tenant, wanted, extra) => {
      const weightOf = (name: string) => (name === 'a' ? 1 + extra : 1);
      const { victims, slots } = sequencesToPreempt(
        tenant,
        wanted,
        new SlotHolders(all),
        roomOf(all),
        standing(weightOf),
      );
      const left = all.filter((each) => !victims.includes(each));
      const gained = roomOf(left).reduce((sum, { freeSlots }) => sum + Math.max(freeSlots, 0), 0);
      expect(new Set(victims).size).toBe(victims.length);
      if (victims.length > 0) expect(gained).toBe(slots);
      else expect(slots).toBe(0);
      for (const loser of new Set(victims.map((victim) => victim.tenant))) {
        expect(loser).not.toBe(tenant);
        expect(heldBy(left, loser) / weightOf(loser)).toBeGreaterThanOrEqual(
          (heldBy(all, tenant) + slots) / weightOf(tenant),
        );
        // Its oldest sequence goes on: everybody gets to the end.
        const own = all.filter((each) => each.tenant === loser);
        expect(victims).not.toContain(own[0]);
      }
    }),
  );
});

test('exchanges of slots between tenants that all want more come to an end', () => {
  fc.assert(
    fc.property(placed, fc.array(fc.constantFrom(...TENANTS), { minLength: 40, maxLength: 40 }), (all, turns) => {
      let now = all;
      let order = all.length;
      let exchanges = 0;
      for (const tenant of turns) {
        const { victims } = sequencesToPreempt(tenant, 1, new SlotHolders(now), roomOf(now), EQUAL);
        if (victims.length === 0) continue;
        exchanges++;
        const { address } = victims[0]!;
        now = [...now.filter((each) => !victims.includes(each)), { tenant, address, enteredMs: order, order: order++ }];
      }
      expect(exchanges).toBeLessThanOrEqual(all.length);
    }),
  );
});

test('a tenant that is alone never loses a sequence, and neither does one where a slot is free', () => {
  const alone = Array.from({ length: 12 }, (_, order) => ({ tenant: 'a', address: 'd1', enteredMs: order, order }));
  const victims = (tenant: string) =>
    sequencesToPreempt(tenant, 5, new SlotHolders(alone), roomOf(alone), EQUAL).victims;
  expect(victims('a')).toEqual([]);
  expect(victims('b')).toEqual([]); // d2 is free
});

test('sequences that wait for a slot make way before those that run, so that the newcomer finds one', () => {
  const many = Array.from({ length: 6 }, (_, order) => ({ tenant: 'a', address: 'd1', enteredMs: 0, order }));
  const room = [{ address: 'd1', freeSlots: SLOTS - 6 }];
  const orders = (wanted: number) =>
    sequencesToPreempt('b', wanted, new SlotHolders(many), room, EQUAL).victims.map(({ order }) => order);
  expect(orders(1)).toEqual([5, 4, 3]);
  expect(orders(2)).toEqual([5, 4, 3, 2]);
  expect(orders(9)).toEqual([5, 4, 3, 2]); // two each
});

test('no sequence makes way for a tenant that was served 2,000 tokens more for its weight than its own', () => {
  const many = Array.from({ length: 4 }, (_, order) => ({ tenant: 'a', address: 'd1', enteredMs: 0, order }));
  const room = [{ address: 'd1', freeSlots: 0 }];
  const servedOf = (tenant: string) => ({ a: 10, even: 2_010, ahead: 2_011 })[tenant] ?? 0;
  const slots = (tenant: string) =>
    sequencesToPreempt(
      tenant,
      2,
      new SlotHolders(many),
      room,
      standing(() => 1, servedOf),
    ).slots;
  expect([slots('ahead'), slots('even')]).toEqual([0, 2]);
});

/** What the other gateways tell one of them. Of two that may give as many the one with the lower number goes first. */
function toldTo(gateway: number, placed: readonly (readonly PlacedSequence[])[]): HeldElsewhere[] {
  return placed.flatMap((sequences, other): HeldElsewhere[] => {
    if (other === gateway) return [];
    const holders = new SlotHolders(sequences);
    const places = new Map(sequences.map(({ tenant, address }) => [`${tenant} ${address}`, { tenant, address }]));
    return [...places.values()].map(({ tenant, address }) => {
      const there = sequences.filter((each) => each.tenant === tenant && each.address === address);
      const movable = there.filter((each) => holders.mayMove(each)).length;
      return { tenant, address, sequences: there.length, movable, first: other < gateway };
    });
  });
}

test('of gateways that know the same of each other exactly one gives way, wherever the oldest sequences of each lie', () => {
  const addresses = ['d1', 'd2', 'd3'] as const;
  const gateways = fc.array(fc.array(fc.constantFrom(...addresses), { maxLength: 4 }), { minLength: 2, maxLength: 3 });
  fc.assert(
    fc.property(gateways, (addressesOf) => {
      const placed = addressesOf.map((own) =>
        own.map((address, order): PlacedSequence => ({ tenant: 'a', address, enteredMs: order, order })),
      );
      const used = addresses.filter((address) => addressesOf.flat().includes(address));
      const room = used.map((address) => ({ address, freeSlots: 0 }));
      const mayMove = placed.some((own) => own.length > 1);
      const holders = placed.map((own, i) => new SlotHolders(own, toldTo(i, placed)));
      const chosen = holders.flatMap((each) => sequencesToYield('new', 1, each, room, EQUAL));
      expect(chosen.length).toBe(mayMove ? 1 : 0);
      const waits = holders.map((each) => sequencesToPreempt('new', 1, each, room, EQUAL));
      for (const { slots, elsewhere } of waits) expect(slots + Number(elsewhere)).toBe(mayMove ? 1 : 0);
    }),
    { numRuns: 1_000 },
  );
});

test('gateways that know the same of each other choose together as many sequences as free the slots, and each its own', () => {
  const gateways = fc.array(fc.array(fc.constantFrom('a', 'b'), { maxLength: 8 }), { minLength: 2, maxLength: 3 });
  fc.assert(
    fc.property(gateways, fc.integer({ min: 1, max: 4 }), (tenantsOf, wanted) => {
      const placed = tenantsOf.map((tenants) =>
        tenants.map((tenant, order): PlacedSequence => ({ tenant, address: 'd1', enteredMs: order, order })),
      );
      const total = placed.flat().length;
      const room = [{ address: 'd1', freeSlots: SLOTS - total }];
      const chosen = placed.map((own, i) => {
        return sequencesToYield('new', wanted, new SlotHolders(own, toldTo(i, placed)), room, EQUAL);
      });
      const all = chosen.flat();
      expect(all.length).toBeLessThanOrEqual(Math.max(0, total - SLOTS + wanted));
      for (const [i, victims] of chosen.entries()) {
        for (const victim of victims) expect(placed[i]).toContain(victim);
        for (const tenant of ['a', 'b']) {
          const own = placed[i]!.filter((each) => each.tenant === tenant);
          if (own.length > 0) expect(victims).not.toContain(own[0]);
        }
      }
      if (total < SLOTS) expect(all).toEqual([]);
    }),
  );
});

test('of two gateways the one that holds more of the tenant with the most gives way', () => {
  const own = (count: number) =>
    Array.from({ length: count }, (_, order) => ({ tenant: 'a', address: 'd1', enteredMs: 0, order }));
  const room = [{ address: 'd1', freeSlots: 0 }];
  const held = (sequences: number, first: boolean): HeldElsewhere[] => [
    { tenant: 'a', address: 'd1', sequences, movable: sequences - 1, first },
  ];
  const chosen = (count: number, elsewhere: HeldElsewhere[]) =>
    sequencesToYield('b', 1, new SlotHolders(own(count), elsewhere), room, EQUAL).length;
  expect([chosen(3, held(1, true)), chosen(1, held(3, false))]).toEqual([1, 0]);
  expect([chosen(2, held(2, false)), chosen(2, held(2, true))]).toEqual([1, 0]);
  expect(sequencesToPreempt('b', 1, new SlotHolders(own(1), held(3, false)), room, EQUAL)).toEqual({
    victims: [],
    slots: 0,
    elsewhere: true,
  });
});
