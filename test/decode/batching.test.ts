/** Each sequence gets what it would get alone, whoever else comes and goes. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { DecodeLoop, finishOf } from '../../services/decode/loop.ts';
import type { KvSlot } from '../../services/lib/kv/pool.ts';
import { GREEDY } from '../../services/lib/request/sequence.ts';
import { FakeEngine, nextToken, settle } from '../fake-engine.ts';
import { alone, fill, join, type Reader, type Wanted } from './reader.ts';

describe('batched = alone', () => {
  const wanted = fc.record({
    prompt: fc.array(fc.nat(28), { minLength: 1, maxLength: 6 }),
    maxTokens: fc.integer({ min: 2, max: 12 }),
    stopTokenIds: fc.subarray([1, 5, 9, 13]),
  });
  const action = fc.oneof(
    { weight: 5, arbitrary: fc.constant({ do: 'step' } as const) },
    { weight: 3, arbitrary: fc.record({ do: fc.constant('fill' as const), wanted }) },
    { weight: 3, arbitrary: fc.constant({ do: 'join' } as const) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('leave' as const), which: fc.nat(9) }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('abort' as const), which: fc.nat(9) }) },
    { weight: 1, arbitrary: fc.constant({ do: 'fail' } as const) },
  );

  test('over random joins, leaves, aborts and failing steps', async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 1, max: 4 }), fc.array(action, { maxLength: 60 }), async (slots, actions) => {
        const engine = new FakeEngine(slots, 32);
        const active = new Set<number>();
        let waiting: (() => void) | undefined;
        let failNext = false;
        engine.beforeStep = async (stepped) => {
          expect(stepped.every((slot) => active.has(slot))).toBe(true);
          await new Promise<void>((resolve) => {
            waiting = resolve;
          });
          if (failNext) {
            failNext = false;
            throw new Error('the step failed');
          }
        };
        let idle = 0;
        const loop = new DecodeLoop(engine, () => idle++);
        const step = async () => {
          waiting?.();
          waiting = undefined;
          await settle();
        };

        const filled: { slot: KvSlot; wanted: Wanted }[] = [];
        const running: Reader[] = [];
        const left: Reader[] = [];
        const leaving: Promise<void>[] = [];
        // As the decode service does: the slot goes back when the sequence is out of the batch.
        const leave = async (reader: Reader) => {
          await loop.leave(reader.sequence);
          active.delete(reader.slot.index);
          reader.slot.release();
        };
        const take = (which: number) => running.splice(which % running.length, 1)[0] as Reader;
        const everyone: Reader[] = [];

        for (const action of actions) {
          if (action.do === 'step') await step();
          else if (action.do === 'fail') {
            failNext = waiting !== undefined;
            await step();
          } else if (action.do === 'fill') {
            const { prompt, maxTokens, stopTokenIds } = action.wanted;
            // A sequence that ends with its first token never joins.
            if (finishOf(nextToken(prompt), 1, maxTokens, { ...GREEDY, stopTokenIds })) continue;
            const slot = fill(engine, action.wanted);
            if (slot) filled.push({ slot, wanted: action.wanted });
          } else if (action.do === 'join') {
            const next = filled.shift();
            if (next === undefined) continue;
            active.add(next.slot.index);
            const reader = join(engine, loop, next.slot, next.wanted);
            running.push(reader);
            everyone.push(reader);
            void reader.ended.then(() => {
              if (running.includes(reader)) leaving.push(leave(take(running.indexOf(reader))));
            });
            await settle();
          } else if (running.length > 0) {
            const reader = take(action.which);
            left.push(reader);
            if (action.do === 'abort') reader.sequence.steps.destroy(new Error('aborted'));
            leaving.push(leave(reader));
          }
        }
        while (waiting) await step();
        await Promise.all(leaving);
        for (const { slot } of filled) slot.release();

        expect(running).toEqual([]);
        engine.pool.assertConserved(0);
        expect(idle > 0).toBe(everyone.length > 0);
        for (const reader of everyone) {
          const { tokens, finishReason } = alone(reader);
          if (reader.finishReason !== undefined) {
            expect(reader.tokens).toEqual(tokens);
            expect(reader.finishReason).toBe(finishReason);
          } else {
            expect(reader.tokens).toEqual(tokens.slice(0, reader.tokens.length));
            const gaveUp = left.includes(reader);
            const failed = reader.error instanceof Error && reader.error.message === 'the step failed';
            expect(gaveUp || failed).toBe(true);
          }
        }
      }),
      { numRuns: 200 },
    );
  });
});
