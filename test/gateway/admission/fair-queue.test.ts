import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { FairQueue, type Waiting } from '../../../services/gateway/admission/fair-queue.ts';
import type { QueueOrder } from '../../../services/lib/request/queue-order.ts';

interface Entry extends Waiting {
  readonly id: number;
}
const entries = fc
  .array(
    fc.record({
      tenant: fc.constantFrom('a', 'b', 'c'),
      priority: fc.nat(2),
      tokens: fc.integer({ min: 1, max: 99 }),
      cost: fc.integer({ min: 1, max: 99 }),
    }),
  )
  .map((list) => list.map((entry, id): Entry => ({ ...entry, id, queuedAtMs: id * 20 })));
const filled = (list: readonly Entry[], weightOf?: (tenant: string) => number, order?: QueueOrder) => {
  const queue = new FairQueue<Entry>(weightOf, order);
  for (const entry of list) queue.add(entry);
  return queue;
};
function drained(queue: FairQueue<Entry>): Entry[] {
  const order: Entry[] = [];
  for (let entry = queue.take(); entry !== undefined; entry = queue.take()) order.push(entry);
  return order;
}
const total = (list: readonly Entry[]) => list.reduce((sum, { tokens }) => sum + tokens, 0);

describe('a fair queue', () => {
  test('the queue gives out every entry once, and its sums are those of the waiting entries', () => {
    fc.assert(
      fc.property(entries, fc.array(fc.nat(30)), (list, removals) => {
        const queue = filled(list);
        const gone = new Set(removals.filter((id) => id < list.length));
        for (const id of gone) expect(queue.remove(list[id]!)).toBe(true);
        for (const id of gone) expect(queue.remove(list[id]!)).toBe(false);
        const left = list.filter(({ id }) => !gone.has(id));
        expect([queue.size, queue.tokens]).toEqual([left.length, total(left)]);
        expect(
          drained(queue)
            .map(({ id }) => id)
            .sort((a, b) => a - b),
        ).toEqual(left.map(({ id }) => id));
        expect([queue.size, queue.tokens, queue.first]).toEqual([0, 0, undefined]);
      }),
    );
  });

  test('entries of a tenant go by priority, the lower value first, then by time', () => {
    fc.assert(
      fc.property(entries, (list) => {
        const order = drained(filled(list));
        for (const name of ['a', 'b', 'c']) {
          const own = list.filter(({ tenant }) => tenant === name);
          const expected = own.toSorted((x, y) => x.priority - y.priority || x.id - y.id);
          expect(order.filter(({ tenant }) => tenant === name)).toEqual(expected);
        }
      }),
    );
  });

  test('shortest first, a second of waiting counts as 500 tokens', () => {
    fc.assert(
      fc.property(entries, (list) => {
        const order = drained(filled(list, undefined, 'shortest-first'));
        const worth = ({ tokens, queuedAtMs }: Entry) => tokens + queuedAtMs / 2;
        for (const name of ['a', 'b', 'c']) {
          const own = list.filter(({ tenant }) => tenant === name);
          const expected = own.toSorted((x, y) => x.priority - y.priority || worth(x) - worth(y) || x.id - y.id);
          expect(order.filter(({ tenant }) => tenant === name)).toEqual(expected);
        }
      }),
    );
  });

  test('the queue knows which tokens would be served before a new entry', () => {
    fc.assert(
      fc.property(entries, fc.nat(20), fc.integer({ min: 1, max: 5 }), (list, taken, weight) => {
        const last = list.at(-1);
        if (last === undefined) return;
        const queue = filled(list.slice(0, -1), (tenant) => (tenant === 'a' ? weight : 1));
        for (let i = 0; i < taken; i++) queue.take();
        const ahead = queue.ahead(last);
        queue.add(last);
        const order = drained(queue);
        expect(ahead).toBe(total(order.slice(0, order.indexOf(last))));
      }),
    );
  });

  test('two tenants that wait share service by weight, to within the longest entry of each', () => {
    fc.assert(
      fc.property(entries, fc.integer({ min: 1, max: 5 }), (list, weight) => {
        const weightOf = (tenant: string) => (tenant === 'a' ? weight : 1);
        const queue = filled(list, weightOf);
        const left = { a: 0, b: 0, c: 0 } as Record<string, number>;
        for (const { tenant } of list) left[tenant]!++;
        const served = { a: 0, b: 0, c: 0 } as Record<string, number>;
        for (let entry = queue.take(); entry !== undefined; entry = queue.take()) {
          served[entry.tenant]! += entry.cost / weightOf(entry.tenant);
          left[entry.tenant]!--;
          if (left['a']! > 0 && left['b']! > 0) {
            expect(Math.abs(served['a']! - served['b']!)).toBeLessThanOrEqual(99 / weight + 99);
          }
        }
      }),
    );
  });

  test('a tenant is owed nothing for the time that it was away', () => {
    const queue = new FairQueue<Entry>();
    const add = (tenant: string, id: number) =>
      queue.add({ tenant, priority: 0, tokens: 10, cost: 10, id, queuedAtMs: id });
    for (let i = 0; i < 10; i++) add('busy', i);
    for (let i = 0; i < 5; i++) queue.take();
    for (let i = 10; i < 15; i++) add('late', i);
    expect(drained(queue).map(({ tenant }) => tenant)).toEqual(
      Array.from({ length: 10 }, (_, i) => (i % 2 === 0 ? 'late' : 'busy')),
    );
  });
});

describe('who has to go', () => {
  test('the last entry of the tenant that holds most has to go; the rest fits, and nothing has changed', () => {
    fc.assert(
      fc.property(entries, fc.integer({ min: 0, max: 500 }), (list, limit) => {
        const [entry, ...rest] = list;
        if (entry === undefined) return;
        const queue = filled(rest);
        const victims = queue.victims(entry, limit);
        expect(queue.size).toBe(rest.length);
        if (victims === undefined) return;
        for (const victim of victims) expect(queue.remove(victim)).toBe(true);
        expect(queue.tokens + entry.tokens).toBeLessThanOrEqual(Math.max(limit, 0));
        if (victims.length === 0) return;
        // It was needed: without the last of them it would not have fitted.
        expect(queue.tokens + entry.tokens + victims.at(-1)!.tokens).toBeGreaterThan(limit);
      }),
    );
  });

  test('a flood of one tenant does not keep out another', () => {
    const queue = new FairQueue<Entry>();
    const entry = (tenant: string, id: number, priority = 0): Entry => ({
      ...{ tenant, priority, tokens: 10, cost: 10, id, queuedAtMs: id },
    });
    for (let i = 0; i < 10; i++) queue.add(entry('flood', i));
    expect(queue.victims(entry('flood', 10), 100)).toBeUndefined();
    expect(queue.victims(entry('calm', 11), 100)?.map(({ id }) => id)).toEqual([9]);
    expect(queue.victims(entry('flood', 12, -1), 100)?.map(({ id }) => id)).toEqual([9]);
  });
});

describe('what a tenant was served elsewhere', () => {
  const entry = (tenant: string, id: number, cost = 10): Entry => ({
    ...{ tenant, priority: 0, tokens: cost, cost, id, queuedAtMs: id },
  });

  test('a tenant that was served elsewhere comes later here, by as much as that is in its share', () => {
    const queue = new FairQueue<Entry>((tenant) => (tenant === 'a' ? 2 : 1));
    for (let i = 0; i < 12; i++) queue.add(entry(i % 2 ? 'b' : 'a', i));
    queue.charge('a', 60); // 30 of its share: b is served three times before it is a's turn
    expect(
      drained(queue)
        .slice(0, 6)
        .map(({ tenant }) => tenant),
    ).toEqual(['b', 'b', 'b', 'a', 'b', 'a']);
  });

  test('nobody owes anything for what was served while nobody waited', () => {
    const queue = new FairQueue<Entry>();
    for (let i = 0; i < 100; i++) queue.charge('a', 1_000);
    for (let i = 0; i < 6; i++) queue.add(entry(i < 3 ? 'a' : 'b', i));
    expect(drained(queue).map(({ tenant }) => tenant)).toEqual(['a', 'b', 'a', 'b', 'a', 'b']);
  });

  test('a debt has a bound, which service here does not lift', () => {
    const queue = new FairQueue<Entry>();
    queue.add(entry('b', 0));
    for (let i = 0; i < 100; i++) queue.charge('a', 100_000);
    queue.add(entry('a', 1));
    for (let i = 2; i < 20; i++) queue.add(entry('b', i, 16_000));
    const order = drained(queue).map(({ tenant }) => tenant);
    expect(order.indexOf('a')).toBe(9); // after b has got 10 + 8 × 16,000, which is more than 128,000
  });
});
