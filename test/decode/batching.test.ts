/**
 * Each sequence gets the tokens that it gets alone, whatever other sequences do, and no step damages a slot that takes
 * no part in it: one that is being filled, waits filled, or is kept.
 */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { DecodeLoop, finishOf } from '../../services/decode/loop.ts';
import type { KvSlot } from '../../services/lib/kv/pool.ts';
import { GREEDY } from '../../services/lib/request/next-token.ts';
import { FakeEngine, nextToken, settle } from '../support/fake-engine.ts';
import { alone, join, type Reader, type Wanted } from '../support/kv-reader.ts';

describe('a batch', () => {
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
    { weight: 1, arbitrary: fc.constant({ do: 'take' } as const) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('abort' as const), which: fc.nat(9) }) },
    { weight: 1, arbitrary: fc.constant({ do: 'fail' } as const) },
  );

  test('sequences in a batch get the tokens they get alone, over random joins, leaves, aborts and failing steps', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 4 }),
        fc.array(action, { maxLength: 60, size: 'max' }),
        async (slots, actions) => {
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

          const filling: Promise<void>[] = [];
          const filled: { slot: KvSlot; wanted: Wanted }[] = [];
          /** Prompts of slots that were kept, oldest first. */
          const kept = new Map<number, readonly number[]>();
          engine.pool.onPressure(() => {
            const [oldest] = kept.keys();
            if (oldest !== undefined) kept.delete(oldest);
            return oldest;
          });
          const running: Reader[] = [];
          const left: Reader[] = [];
          const leaving: Promise<void>[] = [];
          // Like the decode service, which releases the slot when the sequence is out of the batch.
          const leave = async (reader: Reader) => {
            await loop.leave(reader.sequence);
            active.delete(reader.slot.index);
            if (reader.prompt.length % 2) return reader.slot.release();
            kept.set(reader.slot.index, reader.prompt);
            reader.slot.keep();
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
              // Like a hand-over: the first half of the KV comes early, the rest just before the sequence joins.
              const slot = engine.pool.reserve(prompt.length);
              const begin = async (slot: KvSlot) => {
                await loop.betweenSteps();
                engine.write(slot.index, 0, prompt.slice(0, Math.ceil(prompt.length / 2)));
                filled.push({ slot, wanted: action.wanted });
              };
              if (slot) filling.push(begin(slot));
              await settle();
            } else if (action.do === 'take') {
              const [index, prompt] = [...kept][0] ?? [];
              if (index === undefined || prompt === undefined) continue;
              kept.delete(index);
              const slot = engine.pool.take(index, prompt.length);
              expect(engine.read(index, prompt.length)).toEqual(prompt);
              const wanted = { prompt, maxTokens: 3 };
              if (finishOf(nextToken(prompt), 1, 3, GREEDY)) slot?.release();
              else filled.push({ slot: slot as KvSlot, wanted });
            } else if (action.do === 'join') {
              const next = filled.shift();
              if (next === undefined) continue;
              const { prompt } = next.wanted;
              const half = Math.ceil(prompt.length / 2);
              expect(engine.read(next.slot.index, half)).toEqual(prompt.slice(0, half));
              engine.write(next.slot.index, half, prompt.slice(half));
              active.add(next.slot.index);
              const reader = join(loop, next.slot, next.wanted);
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
          await Promise.all([...leaving, ...filling]);
          for (const [slot, prompt] of kept) expect(engine.read(slot, prompt.length)).toEqual(prompt);
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
        },
      ),
      { numRuns: 200 },
    );
  });
});
