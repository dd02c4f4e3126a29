/** The search by codes of one bit per dimension finds what comparing everything finds. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { CODE_STEP, CodeScan, MOST_BITS, QUERY_BITS } from '../../../services/lib/rag/search/code-scan.ts';
import { CodedIndex } from '../../../services/lib/rag/search/coded-index.ts';
import { denseSearches, expectTheBest, ranked } from '../../support/dense-searches.ts';

/** Numbers from -1 to 1. */
function noiseFrom(seed: number) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return state / 2 ** 31;
  };
}

/** Embeddings as encoders give them: a part that all share, clusters, and dimensions that say less and less. */
function clustered(count: number, dim: number, seed: number): Float32Array[] {
  const noise = noiseFrom(seed);
  const vector = (size: number) =>
    Float32Array.from({ length: dim }, (_, i) => (size * noise()) / Math.sqrt(1 + i / 8));
  const [shared, centres] = [vector(2), Array.from({ length: 50 }, () => vector(1))];
  return Array.from({ length: count }, (_, n) => {
    const own = vector(0.5);
    return own.map((value, i) => value + shared[i]! + centres[n % centres.length]![i]!);
  });
}

async function indexOf(vectors: readonly Float32Array[], dim: number, left = new Set<number>()) {
  const index = new CodedIndex(vectors.length, dim);
  for (const [i, vector] of vectors.entries()) if (!left.has(i)) index.set(i, vector);
  await index.finish();
  return index;
}

describe('sums of levels', () => {
  test.each([CODE_STEP, 3 * CODE_STEP, MOST_BITS])('of codes of %i bits are those of counting bit by bit', (bits) => {
    const [count, block] = [9, 4];
    const scan = new CodeScan(count, bits, block);
    const noise = noiseFrom(bits);
    const byte = () => Math.floor(128 + 128 * noise());
    for (const bytes of [scan.codes, scan.planes]) bytes.set(Array.from(bytes, byte));
    scan.codes.fill(255, 0, bits / 8); // the largest sum
    scan.planes.fill(255, 0, bits / 16);
    const bitOf = (bytes: Uint8Array, row: number, i: number) => (bytes[(row * bits) / 8 + (i >> 3)]! >> (i & 7)) & 1;
    const level = (i: number) =>
      Array.from({ length: QUERY_BITS }, (_, j) => bitOf(scan.planes, j, i) << j).reduce((sum, bit) => sum + bit);
    const expected = Array.from({ length: count }, (_, code) =>
      Array.from({ length: bits }, (_, i) => bitOf(scan.codes, code, i) * level(i)).reduce((sum, each) => sum + each),
    );
    expect([...scan.sums(0, 4), ...scan.sums(4, 8), ...scan.sums(8, 9), ...scan.sums(9, 9)]).toEqual(expected);
  });

  test('all bits of 4096 at the highest level do not overflow', () => {
    const scan = new CodeScan(1, MOST_BITS, 1);
    scan.codes.fill(255);
    scan.planes.fill(255);
    expect([...scan.sums(0, 1)]).toEqual([15 * MOST_BITS]);
  });
});

test('up to as many embeddings as are compared in full, it finds what brute force finds, whatever it leaves out', async () => {
  await fc.assert(
    fc.asyncProperty(denseSearches, async (search) => expectTheBest(await indexOf(search.vectors, search.dim), search)),
    { numRuns: 60 },
  );
});

test.each([
  [96, 0],
  [256, 0],
  [96, 3_990],
])(
  'of 12,000 embeddings of %i dimensions it finds at least 99 of 100 of the ten best behind %i that it leaves out',
  async (dim, left) => {
    const vectors = clustered(12_000, dim, dim);
    const index = await indexOf(vectors, dim);
    const queries = clustered(10, dim, dim).map((vector, i) =>
      vector.map((value, j) => value + vectors[i * 7]![j]! / 2),
    );
    let found = 0;
    for (const query of queries) {
      const ordinals = ranked(vectors, query).map(({ ordinal }) => ordinal);
      const leftOut = new Set(ordinals.slice(0, left));
      const hits = await index.search(query, 10, { excludes: (ordinal) => leftOut.has(ordinal) });
      const best = new Set(ordinals.slice(left, left + 10));
      found += hits.filter(({ ordinal }) => best.has(ordinal)).length;
      expect(hits.map(({ score }) => score)).toEqual(hits.map(({ score }) => score).toSorted((a, b) => b - a));
    }
    expect(found).toBeGreaterThanOrEqual(0.99 * 100);
  },
);

test('embeddings that are left out are not found, and where a search leaves almost all out it finds the others', async () => {
  const dim = 16;
  const vectors = clustered(5_000, dim, 3);
  const index = await indexOf(vectors, dim, new Set([7, 8]));
  const query = vectors[7]!;
  expect((await index.search(query, 5)).map(({ ordinal }) => ordinal)).not.toContain(7);
  const worst = ranked(vectors, query).at(-1)!.ordinal;
  const hits = await index.search(query, 3, { excludes: (ordinal) => ordinal !== worst });
  expect(hits.map(({ ordinal }) => ordinal)).toEqual([worst]);
});

test('searches at the same time do not disturb one another, and one can be given up', async () => {
  const vectors = clustered(20_000, 8, 5);
  const index = await indexOf(vectors, 8);
  const alone = [];
  for (let i = 0; i < 8; i++) alone.push(await index.search(vectors[i]!, 3));
  expect(await Promise.all(alone.map((_, i) => index.search(vectors[i]!, 3)))).toEqual(alone);
  const reason = new Error('given up');
  await expect(index.search(vectors[0]!, 3, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
});

test('an empty index has no hits', async () => {
  expect(await (await indexOf([], 4)).search(Float32Array.of(1, 0, 0, 0), 5)).toEqual([]);
});
