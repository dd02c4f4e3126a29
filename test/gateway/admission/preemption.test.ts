import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  type HeldElsewhere,
  type PlacedSequence,
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
      const { victims, slots } = sequencesToPreempt(tenant, wanted, all, roomOf(all), standing(weightOf));
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
        const { victims } = sequencesToPreempt(tenant, 1, now, roomOf(now), EQUAL);
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
  expect(sequencesToPreempt('a', 5, alone, roomOf(alone), EQUAL).victims).toEqual([]);
  expect(sequencesToPreempt('b', 5, alone, roomOf(alone), EQUAL).victims).toEqual([]); // d2 is free
});

test('sequences that wait for a slot make way before those that run, so that the newcomer finds one', () => {
  const many = Array.from({ length: 6 }, (_, order) => ({ tenant: 'a', address: 'd1', enteredMs: 0, order }));
  const room = [{ address: 'd1', freeSlots: SLOTS - 6 }];
  const orders = (wanted: number) =>
    sequencesToPreempt('b', wanted, many, room, EQUAL).victims.map(({ order }) => order);
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
      many,
      room,
      standing(() => 1, servedOf),
    ).slots;
  expect([slots('ahead'), slots('even')]).toEqual([0, 2]);
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
        const elsewhere = placed.flatMap((sequences, other): HeldElsewhere[] => {
          if (other === i) return [];
          return ['a', 'b'].map((tenant) => {
            return { tenant, address: 'd1', sequences: heldBy(sequences, tenant), first: other < i };
          });
        });
        return sequencesToYield(
          'new',
          wanted,
          own,
          room,
          EQUAL,
          elsewhere.filter(({ sequences }) => sequences > 0),
        );
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
  const held = (sequences: number, first: boolean) => [{ tenant: 'a', address: 'd1', sequences, first }];
  const chosen = (count: number, elsewhere: HeldElsewhere[]) =>
    sequencesToYield('b', 1, own(count), room, EQUAL, elsewhere).length;
  expect([chosen(3, held(1, true)), chosen(1, held(3, false))]).toEqual([1, 0]);
  expect([chosen(2, held(2, false)), chosen(2, held(2, true))]).toEqual([1, 0]);
  expect(sequencesToPreempt('b', 1, own(1), room, EQUAL, held(3, false))).toEqual({
    victims: [],
    slots: 0,
    elsewhere: true,
  });
});
