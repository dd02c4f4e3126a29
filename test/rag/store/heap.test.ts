import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Heap } from '../../../services/lib/rag/store/heap.ts';

interface Item {
  readonly name: number;
  rank: number;
}

test('whatever comes, goes and moves, the first item and the first but one of them are those of a sorted list', () => {
  const step = fc.record({
    does: fc.constantFrom('add', 'add', 'move', 'move', 'remove', 'removeAbsent'),
    which: fc.nat(1_000),
    rank: fc.integer({ min: -50, max: 50 }),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
      const before = (a: Item, b: Item) => a.rank < b.rank || (a.rank === b.rank && a.name < b.name);
      const heap = new Heap<Item>(before);
      const all: Item[] = [];
      for (const [name, { does, which, rank }] of steps.entries()) {
        const item = all[which % all.length];
        if (does === 'add') {
          const added = { name, rank };
          all.push(added);
          heap.add(added);
        } else if (does === 'removeAbsent') heap.remove({ name, rank });
        else if (item && does === 'move') {
          item.rank = rank;
          heap.moved(item);
        } else if (item) {
          all.splice(all.indexOf(item), 1);
          heap.remove(item);
        }
        const sorted = all.toSorted((a, b) => (before(a, b) ? -1 : 1));
        expect([heap.size, heap.first(), heap.first(sorted[0])]).toEqual([all.length, sorted[0], sorted[1]]);
      }
    }),
  );
});

test('a change among 10,000 items takes at most two comparisons for each level of the heap', () => {
  let comparisons = 0;
  const heap = new Heap<Item>((a, b) => {
    comparisons++;
    return a.rank < b.rank;
  });
  const items = Array.from({ length: 10_000 }, (_, name) => ({ name, rank: (name * 7_919) % 10_007 }));
  for (const item of items) heap.add(item);
  const most = (act: (item: Item) => void) =>
    Math.max(
      ...items.map((item) => {
        comparisons = 0;
        act(item);
        return comparisons;
      }),
    );
  const levels = Math.ceil(Math.log2(items.length + 1));
  const move = (item: Item) => {
    item.rank = (item.rank * 31) % 10_007;
    heap.moved(item);
  };
  expect(most(move)).toBeLessThanOrEqual(2 * levels + 1);
  expect(most((item) => heap.remove(item))).toBeLessThanOrEqual(2 * levels + 1);
});
