import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type Indexable, JaccardBuilder } from '../../services/lib/rag/jaccard.ts';

function indexOf(documents: readonly Indexable[]) {
  const builder = new JaccardBuilder();
  for (const document of documents) builder.add(document);
  return builder.build();
}

function bruteForce(documents: readonly Indexable[], query: readonly string[], topK: number, exclude?: string) {
  const hits = documents.flatMap(({ path, tokens }, ordinal) => {
    const shared = query.filter((token) => tokens.includes(token)).length;
    const score = shared / new Set([...query, ...tokens]).size;
    return shared === 0 || path === exclude ? [] : [{ ordinal, score }];
  });
  return hits.sort((a, b) => b.score - a.score || a.ordinal - b.ordinal).slice(0, topK);
}

const tokens = fc.uniqueArray(fc.constantFrom(...'abcdefghijkl', 'constructor', '__proto__'), { maxLength: 10 });
/** Chunks of one path come one after the other. */
const documents = fc
  .array(fc.array(tokens, { maxLength: 6 }), { maxLength: 8 })
  .map((files) => files.flatMap((chunks, file) => chunks.map((tokens) => ({ path: `${file}.py`, tokens }))));

describe('the index', () => {
  test('finds what brute force finds, query after query', () => {
    const query = fc.record({
      tokens,
      topK: fc.integer({ min: 0, max: 12 }),
      exclude: fc.option(fc.constantFrom('0.py', '3.py', 'other.py'), { nil: undefined }),
    });
    fc.assert(
      fc.property(documents, fc.array(query, { minLength: 1, maxLength: 4 }), (documents, queries) => {
        const index = indexOf(documents);
        expect(index.size).toBe(documents.length);
        for (const { tokens, topK, exclude } of queries) {
          expect(index.search(tokens, topK, exclude)).toEqual(bruteForce(documents, tokens, topK, exclude));
        }
      }),
      { numRuns: 500 },
    );
  });

  test('breaks ties by path, then line', () => {
    const same = { tokens: ['a', 'b'] };
    const index = indexOf([
      { path: 'x.py', ...same },
      { path: 'x.py', ...same },
      { path: 'y.py', ...same },
    ]);
    expect(index.search(['a', 'c'], 2).map((hit) => hit.ordinal)).toEqual([0, 1]);
    // 1/3 = 2/6: equal fractions of different sets tie as well.
    const mixed = indexOf([
      { path: 'x', tokens: ['a', 'p', 'q', 'b', 'r'] },
      { path: 'y', tokens: ['a'] },
    ]);
    expect(mixed.search(['a', 'b', 'c'], 2)).toEqual([
      { ordinal: 0, score: 1 / 3 },
      { ordinal: 1, score: 1 / 3 },
    ]);
  });

  test('leaves out the file being edited, whole, and nothing else', () => {
    const files = ['a.py', 'a.py', 'b.py', 'c.py', 'c.py'];
    const index = indexOf(files.map((path) => ({ path, tokens: ['t'] })));
    expect(index.search(['t'], 10, 'a.py').map((hit) => hit.ordinal)).toEqual([2, 3, 4]);
    expect(index.search(['t'], 10, 'b.py').map((hit) => hit.ordinal)).toEqual([0, 1, 3, 4]);
    expect(index.search(['t'], 10, 'd.py')).toHaveLength(5);
  });

  test('answers nothing from nothing', () => {
    expect(indexOf([]).search(['a'], 10)).toEqual([]);
    expect(indexOf([{ path: 'a', tokens: ['a'] }]).search([], 10)).toEqual([]);
    expect(indexOf([{ path: 'a', tokens: [] }]).search(['a'], 10)).toEqual([]);
  });
});
