import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  type PlacedSequence,
  type Standing,
  sequencesToPreempt,
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

test('no sequence makes way for a tenant that was served more tokens for its weight than its own', () => {
  const many = Array.from({ length: 4 }, (_, order) => ({ tenant: 'a', address: 'd1', enteredMs: 0, order }));
  const room = [{ address: 'd1', freeSlots: 0 }];
  const servedOf = (tenant: string) => (tenant === 'a' ? 10 : tenant === 'ahead' ? 11 : 10);
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
