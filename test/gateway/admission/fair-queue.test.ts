import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { FairQueue, type Waiting } from '../../../services/gateway/admission/fair-queue.ts';
import type { QueueOrder } from '../../../services/lib/request/queue-order.ts';

interface Entry extends Waiting {
  readonly id: number;
}
type Spec = Pick<Entry, 'tenant' | 'priority' | 'tokens' | 'sequences' | 'sequenceCost' | 'id'>;
const entry = (spec: Spec): Entry => ({
  ...spec,
  pendingTokens: spec.tokens,
  queuedAtMs: spec.id * 20,
  cameBack: false,
});
const costOf = ({ pendingTokens, sequences, sequenceCost }: Entry) => pendingTokens + sequences * sequenceCost;
const LARGEST = { tokens: 99, sequenceCost: 99 };
const entries = fc
  .array(
    fc.record({
      tenant: fc.constantFrom('a', 'b', 'c'),
      priority: fc.nat(2),
      tokens: fc.integer({ min: 1, max: LARGEST.tokens }),
      sequences: fc.integer({ min: 1, max: 4 }),
      sequenceCost: fc.integer({ min: 0, max: LARGEST.sequenceCost }),
    }),
  )
  .map((list) => list.map((spec, id) => entry({ ...spec, id })));
const filled = (list: readonly Entry[], weightOf?: (tenant: string) => number, order?: QueueOrder) => {
  const queue = new FairQueue<Entry>(weightOf, order);
  for (const entry of list) queue.add(entry);
  return queue;
};
/** Takes the next sequence. */
function take(queue: FairQueue<Entry>): Entry | undefined {
  const { first } = queue;
  if (first) queue.take(first);
  return first;
}
/** Takes all sequences: the entry of each, in order. */
function drained(queue: FairQueue<Entry>): Entry[] {
  const order: Entry[] = [];
  for (let next = take(queue); next !== undefined; next = take(queue)) order.push(next);
  return order;
}
/** Without the second and later ones of each entry. */
const firsts = (order: readonly Entry[]) => [...new Set(order)];
const total = (list: readonly Entry[]) => list.reduce((sum, { tokens }) => sum + tokens, 0);
const repeated = (list: readonly Entry[]) => list.flatMap((each) => Array<Entry>(each.sequences).fill(each));

describe('a fair queue', () => {
  test('the queue gives out every sequence once, and its sums are those of the waiting entries', () => {
    fc.assert(
      fc.property(entries, fc.array(fc.nat(30)), (list, removals) => {
        const queue = filled(list);
        const gone = new Set(removals.filter((id) => id < list.length));
        for (const id of gone) expect(queue.remove(list[id]!)).toBe(true);
        for (const id of gone) expect(queue.remove(list[id]!)).toBe(false);
        const left = list.filter(({ id }) => !gone.has(id));
        expect([queue.size, queue.tokens]).toEqual([left.length, total(left)]);
        const all = repeated(left).map(({ id }) => id);
        expect(
          drained(queue)
            .map(({ id }) => id)
            .sort((a, b) => a - b),
        ).toEqual(all);
        expect([queue.size, queue.tokens, queue.first]).toEqual([0, 0, undefined]);
      }),
    );
  });

  test('entries of a tenant go by priority, the lower value first, then by time', () => {
    fc.assert(
      fc.property(entries, (list) => {
        const expectedOf = repeated(list);
        const order = drained(filled(list));
        for (const name of ['a', 'b', 'c']) {
          const own = expectedOf.filter(({ tenant }) => tenant === name);
          const expected = own.toSorted((x, y) => x.priority - y.priority || x.id - y.id);
          expect(order.filter(({ tenant }) => tenant === name)).toEqual(expected);
        }
      }),
    );
  });

  test('shortest first, a second of waiting counts as 500 tokens', () => {
    fc.assert(
      fc.property(entries, (list) => {
        const expectedOf = repeated(list);
        const order = drained(filled(list, undefined, 'shortest-first'));
        const worth = ({ tokens, queuedAtMs }: Entry) => tokens + queuedAtMs / 2;
        for (const name of ['a', 'b', 'c']) {
          const own = expectedOf.filter(({ tenant }) => tenant === name);
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
        for (let i = 0; i < taken; i++) take(queue);
        const ahead = queue.ahead(last);
        const pending = new Map(list.map((each) => [each, each.pendingTokens]));
        queue.add(last);
        const order = firsts(drained(queue));
        const before = order.slice(0, order.indexOf(last));
        expect(ahead).toBe(before.reduce((sum, each) => sum + pending.get(each)!, 0));
      }),
    );
  });

  test('no tenant that waits lags behind another by more than the largest cost of a sequence of each, by weight', () => {
    fc.assert(
      fc.property(entries, fc.integer({ min: 1, max: 5 }), (list, weight) => {
        const weightOf = (tenant: string) => (tenant === 'a' ? weight : 1);
        const queue = filled(list, weightOf);
        const left = (tenant: string) =>
          list.filter((each) => each.tenant === tenant).reduce((sum, { sequences }) => sum + sequences, 0);
        const served = { a: 0, b: 0, c: 0 } as Record<string, number>;
        const largest = LARGEST.tokens + LARGEST.sequenceCost;
        for (let { first } = queue; first !== undefined; first = queue.first) {
          const before = costOf(first);
          queue.take(first);
          served[first.tenant]! += (before - costOf(first)) / weightOf(first.tenant);
          for (const [x, y] of [
            ['a', 'b'],
            ['b', 'c'],
            ['a', 'c'],
          ] as const) {
            if (left(x) === 0 || left(y) === 0) continue;
            const bound = largest / weightOf(x) + largest / weightOf(y);
            expect(Math.abs(served[x]! - served[y]!)).toBeLessThanOrEqual(bound);
          }
        }
      }),
    );
  });

  test('turns of a prompt with many choices alternate with those of another tenant', () => {
    const queue = filled([
      entry({ tenant: 'many', priority: 0, tokens: 10, sequences: 4, sequenceCost: 100, id: 0 }),
      ...[1, 2, 3].map((id) => entry({ tenant: 'one', priority: 0, tokens: 10, sequences: 1, sequenceCost: 100, id })),
    ]);
    expect(drained(queue).map(({ id }) => id)).toEqual([0, 1, 0, 2, 0, 3, 0]);
  });

  test('a sequence that came back keeps its place and is charged nothing', () => {
    const one = { tenant: 'a', priority: 0, tokens: 10, sequences: 1, sequenceCost: 10 };
    const queue = filled([entry({ ...one, id: 1 }), entry({ ...one, id: 2 }), entry({ ...one, tenant: 'b', id: 3 })]);
    queue.add({ ...entry({ ...one, id: 1 }), id: 9, pendingTokens: 0, sequenceCost: 0, cameBack: true });
    expect(drained(queue).map(({ id }) => id)).toEqual([9, 1, 3, 2]);
  });

  test('a newcomer does not wait until a tenant that others went before has caught up', () => {
    const of = (tenant: string, id: number, sequences: number) =>
      entry({ tenant, id, sequences, priority: 0, tokens: 10, sequenceCost: 10 });
    const skipped = of('skipped', 0, 6);
    const before = Array.from({ length: 9 }, (_, i) => of('before', i + 1, 1));
    const queue = filled([skipped, ...before]);
    for (const each of before) {
      expect(queue.firstOf(({ tenant }) => tenant === 'before')).toBe(each);
      queue.take(each);
    }
    queue.add(of('newcomer', 10, 6));
    expect(queue.first).toBe(skipped);
    expect(
      drained(queue)
        .slice(0, 4)
        .map(({ tenant }) => tenant),
    ).toContain('newcomer');
  });

  test('a prompt that needs less goes before the first in line until its tenant leads by 2,000 tokens for its weight', () => {
    const of = (tenant: string, id: number, tokens: number) =>
      entry({ tenant, id, tokens, sequences: 1, priority: 0, sequenceCost: 0 });
    for (const weight of [1, 2]) {
      const queue = new FairQueue<Entry>((tenant) => (tenant === 'small' ? weight : 1));
      queue.add(of('first', 0, 10));
      for (let id = 1; id < 40; id++) queue.add(of('small', id, 1_000));
      const isSmall = ({ tenant }: Entry) => tenant === 'small';
      let before = 0;
      for (let next = queue.firstOf(isSmall); next; next = queue.firstOf(isSmall)) before += queue.take(next);
      expect(before).toBe(3_000 * weight - (weight - 1) * 1_000);
      expect(queue.first?.tenant).toBe('first');
    }
  });

  test('a tenant is owed nothing for the time that it was away', () => {
    const queue = new FairQueue<Entry>();
    const add = (tenant: string, id: number) =>
      queue.add(entry({ tenant, priority: 0, tokens: 10, sequences: 1, sequenceCost: 0, id }));
    for (let i = 0; i < 10; i++) add('busy', i);
    for (let i = 0; i < 5; i++) take(queue);
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
        const [newcomer, ...rest] = list;
        if (newcomer === undefined) return;
        const queue = filled(rest);
        const victims = queue.victims(newcomer, limit);
        expect(queue.size).toBe(rest.length);
        if (victims === undefined) return;
        for (const victim of victims) expect(queue.remove(victim)).toBe(true);
        expect(queue.tokens + newcomer.tokens).toBeLessThanOrEqual(Math.max(limit, 0));
        if (victims.length === 0) return;
        // It was needed: without the last of them it would not have fitted.
        expect(queue.tokens + newcomer.tokens + victims.at(-1)!.tokens).toBeGreaterThan(limit);
      }),
    );
  });

  test('a flood of one tenant does not keep out another', () => {
    const queue = new FairQueue<Entry>();
    const one = (tenant: string, id: number, priority = 0) =>
      entry({ tenant, priority, tokens: 10, sequences: 1, sequenceCost: 0, id });
    for (let i = 0; i < 10; i++) queue.add(one('flood', i));
    expect(queue.victims(one('flood', 10), 100)).toBeUndefined();
    expect(queue.victims(one('calm', 11), 100)?.map(({ id }) => id)).toEqual([9]);
    expect(queue.victims(one('flood', 12, -1), 100)?.map(({ id }) => id)).toEqual([9]);
  });

  test('a prompt of which a sequence was served does not have to go', () => {
    const many = { tenant: 'many', priority: 0, tokens: 10, sequences: 9, sequenceCost: 10 };
    const queue = filled([entry({ ...many, id: 0 }), entry({ ...many, id: 1 })]);
    take(queue);
    const calm = entry({ ...many, tenant: 'calm', sequences: 1, id: 2 });
    expect(queue.victims(calm, 10)?.map(({ id }) => id)).toEqual([1]);
    expect(queue.victims(calm, 5)).toBeUndefined();
  });
});

describe('what a tenant was served elsewhere', () => {
  const one = (tenant: string, id: number, cost = 10): Entry =>
    entry({ tenant, priority: 0, tokens: cost, sequences: 1, sequenceCost: 0, id });

  test('a tenant that was served elsewhere comes later here, by as much as that is in its share', () => {
    const queue = new FairQueue<Entry>((tenant) => (tenant === 'a' ? 2 : 1));
    for (let i = 0; i < 12; i++) queue.add(one(i % 2 ? 'b' : 'a', i));
    queue.charge('a', 60); // 30 of its share: b is served three times before it is a's turn
    expect(
      drained(queue)
        .slice(0, 6)
        .map(({ tenant }) => tenant),
    ).toEqual(['b', 'b', 'b', 'a', 'b', 'a']);
  });

  test('a tenant that was not served all that it was charged for comes as much sooner, and saves up no credit', () => {
    const queue = new FairQueue<Entry>((tenant) => (tenant === 'a' ? 2 : 1));
    for (let i = 0; i < 12; i++) queue.add(one(i % 2 ? 'b' : 'a', i));
    queue.charge('a', 60);
    queue.giveBack('a', 40); // 10 of its share is left
    const order = (count: number) => Array.from({ length: count }, () => take(queue)!.tenant);
    expect(order(4)).toEqual(['b', 'a', 'b', 'a']);
    expect(drained(queue)).toHaveLength(8);
  });

  test('a tenant that is idle saves up no credit by what it is given back', () => {
    const queue = new FairQueue<Entry>();
    for (const [i, tenant] of ['a', 'b', 'a', 'b'].entries()) queue.add(one(tenant, i));
    expect(drained(queue)).toHaveLength(4);
    queue.giveBack('a', 20);
    queue.giveBack('unknown', 20);
    for (let i = 0; i < 6; i++) queue.add(one(i < 3 ? 'b' : 'a', i));
    expect(drained(queue).map(({ tenant }) => tenant)).toEqual(['a', 'b', 'a', 'b', 'a', 'b']);
  });

  test('nobody owes anything for what was served while nobody waited', () => {
    const queue = new FairQueue<Entry>();
    for (let i = 0; i < 100; i++) queue.charge('a', 1_000);
    for (let i = 0; i < 6; i++) queue.add(one(i < 3 ? 'a' : 'b', i));
    expect(drained(queue).map(({ tenant }) => tenant)).toEqual(['a', 'b', 'a', 'b', 'a', 'b']);
  });

  test('a debt has a bound, which service here does not lift', () => {
    const queue = new FairQueue<Entry>();
    queue.add(one('b', 0));
    for (let i = 0; i < 100; i++) queue.charge('a', 100_000);
    queue.add(one('a', 1));
    for (let i = 2; i < 20; i++) queue.add(one('b', i, 16_000));
    const order = drained(queue).map(({ tenant }) => tenant);
    expect(order.indexOf('a')).toBe(9); // after b has got 10 + 8 × 16,000, which is more than 128,000
  });
});
