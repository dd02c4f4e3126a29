/**
 * A store with damaged bytes: whatever its heads, ids, entries and rows hold, a completion is never refused and never
 * fails because of it, and no worker gets a vector that is not finite or of another width.
 */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { createRetrieval, type Retrieval } from '../../services/lib/rag/search/retrieval.ts';
import { fakeGateway, spelling } from '../support/fake-gateway.ts';
import { HIDDEN, MemoryStore } from '../support/memory-store.ts';
import { damaged, fuzz, TIMEOUT_MS } from './budget.ts';

const FILES = Object.fromEntries(
  Array.from({ length: 6 }, (_, i) => [
    `src/f${i}.py`,
    `def total_${i}(cart):\n    return cart.total + shared("größe", ${i})`,
  ]),
);
const KINDS = ['heads', 'ids', 'entryBytes', 'contentBytes'] as const;

/** One value of the store, by its number, and the damage that it takes. */
const damage = fc.record({
  // A damaged head or list of ids costs the whole index: rows are damaged more often.
  kind: fc.constantFrom(...KINDS, ...KINDS.slice(2), ...KINDS.slice(2), ...KINDS.slice(2), ...KINDS.slice(2)),
  number: fc.nat(5),
  bytes: damaged(fc.constant(new Uint8Array(0))).map((noise) => Buffer.from(noise)),
  seed: fc.array(fc.record({ at: fc.double({ min: 0, max: 1, noNaN: true }), bit: fc.nat(7) }), { maxLength: 4 }),
  whole: fc.boolean(),
});

test(
  'completions go on whatever the bytes of the store are',
  async () => {
    const good = new MemoryStore();
    good.publishFiles('shop', FILES);
    let retrieval: Retrieval = createRetrieval(good, { queryLines: 10 });
    const { complete, workers } = await fakeGateway(
      { token: spelling('ok') },
      { retrieval: { retrieve: (...asked) => retrieval.retrieve(...asked) }, retrievalBudgetMs: 60_000 },
    );
    const inputs = fc.tuple(fc.array(damage, { minLength: 1, maxLength: 6 }), fc.constantFrom('compressed', 'text'));
    await fuzz('store rows', inputs, async ([damages, mode]) => {
      const store = new MemoryStore();
      for (const kind of KINDS) for (const [key, bytes] of good[kind]) store[kind].set(key, Buffer.from(bytes));
      for (const { kind, number, bytes, seed, whole } of damages) {
        const keys = [...store[kind].keys()];
        const key = keys[number % keys.length]!;
        const value = Buffer.from(store[kind].get(key)!);
        for (const { at, bit } of seed) {
          const index = Math.min(Math.floor(at * value.length), value.length - 1);
          if (index >= 0) value[index] = value[index]! ^ (1 << bit);
        }
        store[kind].set(key, whole ? bytes : value);
      }
      retrieval = createRetrieval(store, { queryLines: 10 });
      const answer = await complete({ prompt: 'shared(cart.total)', suffix: '', rag: { repo: 'shop', mode } });
      expect(answer.status).toBe(200);
      const { soft } = workers.prefills.at(-1)!;
      const vectors = new Float32Array(Uint8Array.from(soft!.vectors as Uint8Array).buffer);
      expect(vectors.length).toBe(HIDDEN * soft!.positions!.length);
      expect(vectors.every(Number.isFinite)).toBe(true);
      return (answer.rag!.chunks as unknown[]).length > 0;
    });
  },
  TIMEOUT_MS,
);
