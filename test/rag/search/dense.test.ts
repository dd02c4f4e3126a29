import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { DenseIndex, DenseScorer } from '../../../services/lib/rag/search/dense.ts';
import { fuse, fusedDepth } from '../../../services/lib/rag/search/fused.ts';
import { cosine, denseSearches, expectTheBest } from '../../support/dense-searches.ts';

let scorer: DenseScorer;
beforeAll(async () => {
  scorer = await DenseScorer.load({ threads: 1 });
});
afterAll(() => scorer.dispose());

function indexOf(vectors: readonly Float32Array[], dim: number) {
  const index = new DenseIndex(scorer, vectors.length, dim);
  for (const [i, vector] of vectors.entries()) index.set(i, vector);
  return index;
}

test('dense search finds what brute force finds, whatever it leaves out', async () => {
  await fc.assert(
    fc.asyncProperty(denseSearches, async (search) => expectTheBest(indexOf(search.vectors, search.dim), search)),
    { numRuns: 100 },
  );
});

test('dense search finds the best of many that rounding to 8 bits cannot tell apart, over several blocks', async () => {
  const dim = 24;
  let seed = 7;
  const noise = () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) | 0;
    return seed / 2 ** 31;
  };
  const centre = Float32Array.from({ length: dim }, noise);
  for (const spread of [1e-4, 1e-2, 1]) {
    const near = () => centre.map((value) => value + spread * noise());
    const vectors = Array.from({ length: 40_000 }, near);
    const index = indexOf(vectors, dim);
    for (const query of [centre, near(), near()]) {
      const hits = await index.search(query, 10, { excludes: (ordinal) => ordinal >= 100 && ordinal < 200 });
      const scores = vectors.map((vector, i) => (i >= 100 && i < 200 ? -1 : cosine(vector, query)));
      const brute = scores.toSorted((a, b) => b - a).slice(0, 10);
      for (const [i, { ordinal, score }] of hits.entries()) {
        expect(Math.abs(score - brute[i]!)).toBeLessThan(2e-6);
        expect(Math.abs(score - scores[ordinal]!)).toBeLessThan(2e-6);
      }
    }
  }
});

test('a query or an embedding of one large value among small ones loses nothing', async () => {
  const spiked = (at: number, small: number) => Float32Array.from({ length: 64 }, (_, i) => (i === at ? 1 : small));
  const vectors = Array.from({ length: 64 }, (_, i) => spiked(i % 32, 1e-4 * (i + 1)));
  const index = indexOf(vectors, 64);
  for (const query of vectors) {
    const hits = await index.search(query, 64);
    const brute = vectors.map((vector) => cosine(vector, query)).sort((a, b) => b - a);
    for (const [i, { score }] of hits.entries()) expect(Math.abs(score - brute[i]!)).toBeLessThan(2e-6);
  }
});

test('equal embeddings come in the order of the index, whatever their lengths', async () => {
  const vectors = [1, 3, 0.5, 7, 2].map((scale) => Float32Array.of(0.3 * scale, 0.4 * scale, scale));
  const hits = await indexOf(vectors, 3).search(Float32Array.of(1, 2, 3), 4);
  expect(hits.map(({ ordinal }) => ordinal)).toEqual([0, 1, 2, 3]);
});

test('searches at the same time do not disturb one another', async () => {
  const vectors = Array.from({ length: 64 }, (_, i) => Float32Array.from({ length: 64 }, (_, j) => (i === j ? 1 : 0)));
  const index = indexOf(vectors, 64);
  const found = await Promise.all(vectors.map((vector) => index.search(vector, 1)));
  expect(found.map(([hit]) => hit?.ordinal)).toEqual(vectors.map((_, i) => i));
});

test('an empty index has no hits', async () => {
  expect(await new DenseIndex(scorer, 0, 1).search(Float32Array.of(1), 5)).toEqual([]);
});

test('rankings are fused by reciprocal rank', () => {
  const ranking = (...ordinals: number[]) => ordinals.map((ordinal, i) => ({ ordinal, score: 10 - i }));
  const fused = fuse([ranking(1, 2, 3), ranking(3, 1), ranking(4)], 3);
  expect(fused).toEqual([
    { ordinal: 1, score: 1 / 61 + 1 / 62 },
    { ordinal: 3, score: 1 / 63 + 1 / 61 },
    { ordinal: 4, score: 1 / 61 },
  ]);
  expect(fuse([ranking(5), ranking(2)], 2).map(({ ordinal }) => ordinal)).toEqual([2, 5]); // a tie
  expect(fuse([], 3)).toEqual([]);
  expect(fuse([ranking(1)], 0)).toEqual([]);
  expect(fusedDepth(1)).toBe(50);
  expect(fusedDepth(20)).toBe(100);
});
