/** Small dense searches at random: whole numbers, so that many embeddings are equal or in line with each other. */
import fc from 'fast-check';
import { expect } from 'vitest';
import type { EmbeddingIndex } from '../../services/lib/rag/search/dense.ts';

interface DenseSearch {
  readonly dim: number;
  readonly vectors: readonly Float32Array[];
  readonly query: Float32Array;
  readonly topK: number;
  /** Of so many in the order of their cosine the search leaves out all but the last. */
  readonly oneOf: number;
}

/** Embeddings of 1 to 12 dimensions, none of which is zero, a query among them, and how many hits are wanted. */
export const denseSearches: fc.Arbitrary<DenseSearch> = fc.integer({ min: 1, max: 12 }).chain((dim) => {
  const vector = fc
    .array(fc.integer({ min: -9, max: 9 }), { minLength: dim, maxLength: dim })
    .map((values) => Float32Array.from(values.some((v) => v !== 0) ? values : [1, ...values.slice(1)]));
  return fc.record({
    dim: fc.constant(dim),
    vectors: fc.array(vector, { minLength: 1, maxLength: 40 }),
    query: vector,
    topK: fc.integer({ min: 0, max: 12 }),
    oneOf: fc.integer({ min: 1, max: 8 }),
  });
});

function product(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
}

export const cosine = (a: Float32Array, b: Float32Array) => product(a, b) / Math.sqrt(product(a, a) * product(b, b));

/** All, best first. */
export const ranked = (vectors: readonly Float32Array[], query: Float32Array) =>
  vectors.map((vector, ordinal) => ({ ordinal, score: cosine(vector, query) })).sort((a, b) => b.score - a.score);

/** Compares the hits with all that the search does not leave out. */
export async function expectTheBest(index: EmbeddingIndex, { vectors, query, topK, oneOf }: DenseSearch) {
  const all = ranked(vectors, query);
  const leftOut = new Set(all.filter((_, i) => (i + 1) % oneOf !== 0).map(({ ordinal }) => ordinal));
  const hits = await index.search(query, topK, { excludes: (ordinal) => leftOut.has(ordinal) });
  const best = all.filter(({ ordinal }) => !leftOut.has(ordinal)).slice(0, topK);
  // Hits are compared up to rounding: of two that differ by 1e-6 either may come first.
  expect(hits).toHaveLength(best.length);
  for (const [i, { ordinal, score }] of hits.entries()) {
    expect(score).toBeCloseTo(best[i]!.score, 5);
    expect(score).toBeCloseTo(cosine(vectors[ordinal]!, query), 5);
    expect(leftOut.has(ordinal)).toBe(false);
  }
}
