/** Small dense searches at random: whole numbers, so that many embeddings are equal or in line with each other. */
import fc from 'fast-check';

/** Embeddings of 1 to 12 dimensions, none of which is zero, a query among them, and how many hits are wanted. */
export const denseSearches = fc.integer({ min: 1, max: 12 }).chain((dim) => {
  const vector = fc
    .array(fc.integer({ min: -9, max: 9 }), { minLength: dim, maxLength: dim })
    .map((values) => Float32Array.from(values.some((v) => v !== 0) ? values : [1, ...values.slice(1)]));
  return fc.record({
    dim: fc.constant(dim),
    vectors: fc.array(vector, { minLength: 1, maxLength: 40 }),
    query: vector,
    topK: fc.integer({ min: 0, max: 12 }),
  });
});
