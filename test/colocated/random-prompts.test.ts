/**
 * Random families of prompts in few slots, which come and go at any time: each gets the output that it gets alone. Some
 * sequences decode in another process, and the memory of the caches answers at once, as the CPU's, or in later turns of
 * the event loop, as a device's.
 */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { GREEDY } from '../../services/lib/request/next-token.ts';
import { samplingMessage, softTokensMessage } from '../../services/lib/rpc/messages.ts';
import { continuation, FakeEngine, HIDDEN, LAYOUT, settle, tokensOf, until } from '../support/fake-engine.ts';
import { SlowStore, turns } from '../support/slow-store.ts';
import { begin, decode, decodeRequest, prefillRequest, startColocated, startDecode } from '../support/workers.ts';

const CAPACITY = 80;
/** Prompts of a family share their beginning: block i is one of two, mostly the first. */
const journey = fc.record({
  blocks: fc.array(fc.constantFrom(1, 1, 1, 2), { maxLength: 4, size: 'max' }),
  rest: fc.integer({ min: 1, max: 9 }),
  soft: fc.option(fc.nat(20), { freq: 1 }),
  cacheSalt: fc.constantFrom('', '', '', 'other'),
  maxTokens: fc.integer({ min: 1, max: 7 }),
  stopTokenIds: fc.subarray([3, 9, 17]),
  choices: fc.constantFrom(1, 1, 1, 2, 3),
  /** The choices that decode in another process. */
  elsewhere: fc.subarray([0, 1, 2], { maxLength: 1 }),
  /** Runs of the engine after which the prompt comes, and after which its caller hangs up. */
  begins: fc.nat(60),
  givenUp: fc.option(fc.nat(30), { freq: 2 }),
});
type Journey = typeof journey extends fc.Arbitrary<infer T> ? T : never;

function promptOf({ blocks, rest, soft: at }: Journey) {
  const ids = [...blocks.flatMap((variant) => new Array<number>(16).fill(variant)), ...new Array<number>(rest).fill(0)];
  const positions = Int32Array.from(at !== null && at < ids.length ? [at] : []);
  return { ids: Int32Array.from(ids), soft: { positions, vectors: new Float32Array(positions.length * HIDDEN) } };
}

describe.each([
  ['at once', false],
  ['in later turns', true],
])('over memory that answers %s', (_, isSlow) => {
  test('over random prompts each output is that of its prompt alone, every prompt ends, and no slot is lost', async () => {
    const seen = { finished: 0, reused: 0, together: 0, givenUp: 0, refused: 0, beside: 0, exchanged: 0, elsewhere: 0 };
    const property = fc.asyncProperty(
      fc.integer({ min: 1, max: 6 }),
      fc.constantFrom('fifo' as const, 'shortest-first' as const),
      fc.array(journey, { minLength: 2, maxLength: 12, size: 'max' }),
      fc.infiniteStream(fc.nat(3)),
      async (slots, queueOrder, journeys, waits) => {
        const stores: SlowStore[] = [];
        const engineOf = (count: number) => {
          const engine = new FakeEngine(count, CAPACITY, LAYOUT, (memory) => {
            if (!isSlow) return memory;
            const slow = new SlowStore(memory, () => turns(waits.next().value ?? 0));
            stores.push(slow);
            return slow;
          });
          stores.at(-1)?.watch(engine.pool);
          return engine;
        };
        const engine = engineOf(slots);
        const other = await startDecode({}, engineOf(2));
        const { client, decoder, stop } = await startColocated({ queueOrder }, engine);
        const swap = engine.memory.swap.bind(engine.memory);
        engine.memory.swap = (...which) => {
          seen.exchanged++;
          swap(...which);
        };
        let runs = 0;
        let active = 0;
        const run = async () => {
          runs++;
          await settle();
        };
        engine.beforeChunk = run;
        engine.beforeStep = (stepped) => {
          seen.together += stepped.length > 1 ? 1 : 0;
          seen.beside += engine.pool.reserved > stepped.length ? 1 : 0;
          return run();
        };

        /** The choices begin one after another. A failure of one ends them all, as in the gateway. */
        const travel = async (wanted: Journey) => {
          await until(() => runs >= wanted.begins || active === 0);
          active++;
          const { stopTokenIds, maxTokens, choices, cacheSalt, givenUp, elsewhere } = wanted;
          const prompt = promptOf(wanted);
          const expected = continuation(tokensOf(prompt), maxTokens, stopTokenIds);
          const caller = new AbortController();
          const began = runs;
          if (givenUp !== null) {
            void until(() => runs >= began + givenUp || active === 0).then(() => caller.abort(new Error('hung up')));
          }
          try {
            const sampling = samplingMessage({ ...GREEDY, stopTokenIds });
            const request = prefillRequest([...prompt.ids], {
              soft: softTokensMessage(prompt.soft),
              cacheSalt,
              readers: choices,
              choices: new Array(choices).fill(sampling),
            });
            const staged = await begin(client, request, caller.signal);
            const outputs = await Promise.all([
              staged.firstEvent(),
              ...Array.from({ length: choices }, (_, choice) => {
                const worker = elsewhere.includes(choice) ? other.client : decoder;
                return decode(worker, decodeRequest(staged.kv, maxTokens, { choice, sampling }), caller.signal);
              }),
            ]);
            const [first, ...rest] = outputs;
            for (const { tokens, finishReason } of rest) {
              expect([first?.tokens[0]?.id, ...tokens]).toEqual(expected.tokens);
              expect(finishReason).toBe(expected.finishReason);
            }
            await staged.released();
            seen.finished++;
            seen.elsewhere += elsewhere.filter((choice) => choice < choices).length;
            seen.reused += first?.cachedTokens ?? 0;
          } catch (error) {
            const { code } = error as { code?: string };
            const refused = code === 'saturated' && choices > 1;
            if (refused) seen.refused++;
            else if (error === caller.signal.reason) seen.givenUp++;
            else throw error;
            caller.abort(error);
          } finally {
            active--;
          }
        };
        await Promise.all(journeys.map(travel));
        await until(() => engine.pool.reserved + other.engine.pool.reserved === 0);
        engine.pool.assertConserved(0);
        await Promise.all([stop(), other.stop()]);
        expect(stores.flatMap(({ violations }) => violations)).toEqual([]);
      },
    );
    // Repeats until every case of interest has occurred: in one of six batches of 20 runs no slots are exchanged.
    for (let batch = 0; batch === 0 || Object.values(seen).includes(0); batch++) {
      expect(batch, `of 20 runs each: ${JSON.stringify(seen)}`).toBeLessThan(20);
      await fc.assert(property, { numRuns: 20 });
    }
  });
});
