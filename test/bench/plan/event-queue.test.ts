import fc from 'fast-check';
import { expect, it } from 'vitest';
import { EventQueue } from '../../../bench/plan/event-queue.ts';

it('an event queue returns everything in order of time, and events of equal time in the order they were pushed', () => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 0, max: 9 })), (times) => {
      const queue = new EventQueue<number>();
      for (const [i, at] of times.entries()) queue.push(at, i);
      const popped: { at: number; value: number }[] = [];
      for (let next = queue.pop(); next; next = queue.pop()) popped.push({ at: next.at, value: next.value });
      const wanted = times.map((at, value) => ({ at, value })).toSorted((a, b) => a.at - b.at || a.value - b.value);
      expect(popped).toEqual(wanted);
    }),
  );
});
