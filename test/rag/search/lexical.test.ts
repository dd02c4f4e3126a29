import { setImmediate as nextRound } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import fc from 'fast-check';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { inTurns } from '../../../services/lib/async/turns.ts';
import { type Indexable, InvertedIndexBuilder } from '../../../services/lib/rag/search/inverted-index-builder.ts';
import { bm25, searchLexical } from '../../../services/lib/rag/search/lexical.ts';
import type { Hit } from '../../../services/lib/rag/search/top-hits.ts';

async function indexOf(documents: readonly Indexable[]) {
  const builder = new InvertedIndexBuilder();
  for (const document of documents) builder.add(document);
  return inTurns(builder.build());
}

/** The chunks that a search may find: of those with equal identifiers the first one outside the file being edited. */
function searched(documents: readonly Indexable[], exclude?: string): ReadonlySet<number> {
  const firsts = new Map<string, number>();
  for (const [ordinal, { path, tokens }] of documents.entries()) {
    const key = tokens.join(' ');
    if (path !== exclude && !firsts.has(key)) firsts.set(key, ordinal);
  }
  return new Set(firsts.values());
}

const best = (hits: Hit[], topK: number) =>
  hits.sort((a, b) => b.score - a.score || a.ordinal - b.ordinal).slice(0, topK);

function bruteJaccard(documents: readonly Indexable[], query: readonly string[], topK: number, exclude?: string) {
  const candidates = searched(documents, exclude);
  const hits = documents.flatMap(({ tokens }, ordinal) => {
    const shared = query.filter((token) => tokens.includes(token)).length;
    const score = shared / new Set([...query, ...tokens]).size;
    return shared === 0 || !candidates.has(ordinal) ? [] : [{ ordinal, score }];
  });
  return best(hits, topK);
}

function bruteBm25(documents: readonly Indexable[], query: readonly string[], topK: number, exclude?: string) {
  const average = documents.reduce((sum, { tokens }) => sum + tokens.length, 0) / documents.length;
  const { weight, score } = bm25(documents.length, average);
  const frequency = (token: string) => documents.filter(({ tokens }) => tokens.includes(token)).length;
  const candidates = searched(documents, exclude);
  const hits = documents.flatMap(({ tokens }, ordinal) => {
    const shared = query.filter((token) => tokens.includes(token));
    const sum = shared.reduce((total, token) => total + weight(frequency(token)), 0);
    const isHit = shared.length > 0 && candidates.has(ordinal);
    return isHit ? [{ ordinal, score: score(sum, tokens.length) }] : [];
  });
  return best(hits, topK);
}

const ordinals = (hits: readonly Hit[]) => hits.map(({ ordinal }) => ordinal);

const BRUTE = { jaccard: bruteJaccard, bm25: bruteBm25 } as const;
const NAMES = ['jaccard', 'bm25'] as const;

const tokens = fc.uniqueArray(fc.constantFrom(...'abcdefghijkl', 'constructor', '__proto__'), { maxLength: 10 });
/** Chunks of one path come one after the other. */
const few = fc
  .array(fc.array(tokens, { maxLength: 6 }), { maxLength: 8 })
  .map((files) => files.flatMap((chunks, file) => chunks.map((tokens) => ({ path: `${file}.py`, tokens }))));

/** Random numbers in [0, 1) from a seed. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Chunks that are like code: a few identifiers are in most chunks, and most identifiers in few. */
function many(seed: number, count: number): Indexable[] {
  const next = random(seed);
  const word = () => `w${Math.floor(400 * next() ** 3)}`;
  return Array.from({ length: count }, (_, i) => ({
    path: `${Math.floor(i / 7)}.py`,
    tokens: [...new Set(Array.from({ length: 1 + Math.floor(30 * next()) }, word))],
  }));
}

describe.each(NAMES)('%s', (name) => {
  test('lexical search finds what brute force finds, query after query', async () => {
    const query = fc.record({
      tokens,
      topK: fc.integer({ min: 0, max: 12 }),
      exclude: fc.option(fc.constantFrom('0.py', '3.py', 'other.py'), { nil: undefined }),
    });
    await fc.assert(
      fc.asyncProperty(few, fc.array(query, { minLength: 1, maxLength: 4 }), async (documents, queries) => {
        const index = await indexOf(documents);
        expect(index.size).toBe(documents.length);
        for (const { tokens, topK, exclude } of queries) {
          const expected = BRUTE[name](documents, tokens, topK, exclude);
          expect(await searchLexical(index, name, tokens, topK, { excludes: index.excluding(exclude) })).toEqual(
            expected,
          );
        }
      }),
      { numRuns: 300 },
    );
  });

  // There are enough chunks for identifiers on lists and in bitmaps, and for lists that are not walked to their ends.
  test('lexical search finds among many chunks what brute force finds', async () => {
    const seeds = fc.integer({ min: 0, max: 2 ** 32 - 1 });
    await fc.assert(
      fc.asyncProperty(seeds, fc.integer({ min: 33, max: 600 }), async (seed, count) => {
        const documents = many(seed, count);
        const index = await indexOf(documents);
        for (const { path, tokens } of many(seed ^ 0x5555, 3).concat(documents[count >> 1]!)) {
          const expected = BRUTE[name](documents, tokens, 5, path);
          expect(await searchLexical(index, name, tokens, 5, { excludes: index.excluding(path) })).toEqual(expected);
        }
      }),
      { numRuns: 60 },
    );
  });

  test('lexical search leaves out the whole file being edited and nothing else', async () => {
    const files = ['a.py', 'a.py', 'b.py', 'c.py', 'c.py'];
    const index = await indexOf(files.map((path, i) => ({ path, tokens: ['t', `t${i}`] })));
    const without = async (path: string) =>
      ordinals(await searchLexical(index, name, ['t'], 10, { excludes: index.excluding(path) }));
    expect(await without('a.py')).toEqual([2, 3, 4]);
    expect(await without('b.py')).toEqual([0, 1, 3, 4]);
    expect(await without('d.py')).toHaveLength(5);
  });

  test('however many copies a text has, a search finds the first that is not in the file being edited', async () => {
    const copies = Array.from({ length: 500 }, (_, i) => ({ path: `${i >> 1}.py`, tokens: ['a', 'b'] }));
    const others = [['a'], ['b', 'a'], ['a', 'b', 'c']].map((tokens) => ({ path: 'z.py', tokens }));
    const index = await indexOf([...copies, ...others]);
    const found = async (path?: string) =>
      ordinals(await searchLexical(index, name, ['a', 'b'], 10, { excludes: index.excluding(path) })).sort(
        (a, b) => a - b,
      );
    expect(await found()).toEqual([0, 500, 501, 502]);
    expect(await found('0.py')).toEqual([2, 500, 501, 502]);
    expect(await found('7.py')).toEqual([0, 500, 501, 502]);
    expect(await found('z.py')).toEqual([0]);
  });

  test('an empty query, an empty index and a top-k of 0 give no hits', async () => {
    const search = async (documents: readonly Indexable[], query: string[]) =>
      searchLexical(await indexOf(documents), name, query, 10);
    expect(await search([], ['a'])).toEqual([]);
    expect(await search([{ path: 'a', tokens: ['a'] }], [])).toEqual([]);
    expect(await search([{ path: 'a', tokens: [] }], ['a'])).toEqual([]);
  });
});

/** From here on each step of long work takes a turn of its own: time goes on whenever the clock is read. */
async function slowSteps(): Promise<void> {
  for (let round = 0; round < 2; round++) await nextRound(); // a turn that has begun goes by another clock
  let nowMs = performance.now();
  const clock = vi.spyOn(performance, 'now').mockImplementation(() => {
    nowMs += 6;
    return nowMs;
  });
  onTestFinished(() => clock.mockRestore());
}

test('searches of one index at once find what each finds alone, also when some are given up midway', async () => {
  const documents = many(7, 500);
  const index = await indexOf(documents);
  await slowSteps();
  for (let steps = 0; steps < 6; steps++) {
    const abort = new AbortController();
    const reason = new Error('nobody waits');
    const asked = many(steps, 6).map(({ tokens }, i) => ({ tokens, name: NAMES[i & 1]!, given: i % 3 === 0 }));
    const found = Promise.allSettled(
      asked.map(({ tokens, name, given }) =>
        searchLexical(index, name, tokens, 5, { excludes: index.excluding(), ...(given && { signal: abort.signal }) }),
      ),
    );
    for (let step = 0; step < steps; step++) await nextRound();
    abort.abort(reason);
    for (const [i, result] of (await found).entries()) {
      const { tokens, name, given } = asked[i]!;
      if (given && result.status === 'rejected') expect(result.reason).toBe(reason);
      else expect(result).toEqual({ status: 'fulfilled', value: BRUTE[name](documents, tokens, 5) });
    }
  }
});

test('a search of many chunks lets the event loop go on every few thousand of them', async () => {
  const chunks = 40_000;
  const index = await indexOf(Array.from({ length: chunks }, (_, i) => ({ path: 'x', tokens: ['a', `${i}`] })));
  await slowSteps();
  let rounds = 0;
  let done = false;
  const found = searchLexical(index, 'jaccard', ['a'], 5);
  const ended = found.finally(() => (done = true));
  for (; !done; rounds++) await nextRound();
  expect(await ended).toHaveLength(5);
  expect(rounds).toBeGreaterThanOrEqual(chunks / 4_096);
});

test('ties are broken by path, then by line', async () => {
  const same = { tokens: ['a', 'b'] };
  const index = await indexOf([
    { path: 'x.py', ...same },
    { path: 'x.py', ...same },
    { path: 'y.py', ...same },
  ]);
  for (const name of NAMES) {
    expect(ordinals(await searchLexical(index, name, ['a', 'c'], 2))).toEqual([0, 1]);
  }
  // 1/3 = 2/6: equal fractions of different sets tie as well.
  const mixed = await indexOf([
    { path: 'x', tokens: ['a', 'p', 'q', 'b', 'r'] },
    { path: 'y', tokens: ['a'] },
  ]);
  expect(await searchLexical(mixed, 'jaccard', ['a', 'b', 'c'], 2)).toEqual([
    { ordinal: 0, score: 1 / 3 },
    { ordinal: 1, score: 1 / 3 },
  ]);
});

test('bm25 prefers a rare identifier, and jaccard does not', async () => {
  const index = await indexOf([
    { path: 'a', tokens: ['self', 'x1', 'x2'] },
    { path: 'b', tokens: ['parse_invoice', 'y1', 'y2'] },
    { path: 'c', tokens: ['self', 'z1'] },
    { path: 'd', tokens: ['self', 'u1', 'u2', 'u3'] },
  ]);
  const first = async (name: 'jaccard' | 'bm25') =>
    ordinals(await searchLexical(index, name, ['self', 'parse_invoice'], 1));
  expect(await first('bm25')).toEqual([1]);
  expect(await first('jaccard')).toEqual([2]);
});

/** 2 kB of text, like a chunk's entry, cut into identifiers. */
const cut = (i: number) => `${'common_name '.repeat(160)}its_own_identifier_${i}`.split(' ');

test('an index keeps copies of names, and not the texts that they were cut from', async () => {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  collect();
  const before = process.memoryUsage().heapUsed;
  const count = 10_000;
  const builder = new InvertedIndexBuilder();
  for (let i = 0; i < count; i++) builder.add({ path: 'a.py', tokens: [...new Set(cut(i))] });
  const index = await inTurns(builder.build());
  collect();
  expect((process.memoryUsage().heapUsed - before) / count).toBeLessThan(1_000);
  expect(ordinals(await searchLexical(index, 'jaccard', ['its_own_identifier_7'], 1))).toEqual([7]);
});

test('the memory of an index includes its names', async () => {
  const bytes = async (path: string, token: string) => (await indexOf([{ path, tokens: [token] }])).bytesPerChunk;
  const least = await bytes('a', 'a');
  expect(least).toBeGreaterThan(100); // two entries of a Map
  expect((await bytes('a'.repeat(11), 'b'.repeat(101))) - least).toBe(110);
});
