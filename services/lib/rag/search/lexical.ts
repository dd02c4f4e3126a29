/** The two ways to compare identifier sets. Both are exact, and both search the same inverted index. */
import type { InvertedIndex, Scoring, SearchHow } from './inverted-index.ts';
import type { Hit } from './top-hits.ts';

/** |A∩B| / |A∪B|, in (0, 1]: the paper's retriever. */
const jaccard = (querySize: number): Scoring => ({
  weight: () => 1,
  score: (shared, size) => {
    const common = Math.min(shared, size); // `shared` may be an upper bound, larger than the chunk
    return common / (querySize + size - common);
  },
});

/** Lucene's constants. */
const K1 = 1.2;
const B = 0.75;
/** Steps per unit of inverse document frequency. */
const IDF_STEPS = 4096;

/**
 * BM25 (Lucene's form, k1 = 1.2, b = 0.75) of identifier sets: a chunk of ten lines holds an identifier or does not, so
 * term frequency is 1. Inverse document frequencies are rounded to 1/4096.
 */
export const bm25 = (chunks: number, averageSize: number): Scoring => ({
  weight: (frequency) =>
    Math.max(1, Math.round(IDF_STEPS * Math.log1p((chunks - frequency + 0.5) / (frequency + 0.5)))),
  score: (shared, size) => shared / IDF_STEPS / (1 + K1 * (1 - B + (B * size) / averageSize)),
});

/** @param tokens distinct identifiers of the query. @throws the signal's reason. */
export function searchLexical(
  index: InvertedIndex,
  retriever: 'jaccard' | 'bm25',
  tokens: readonly string[],
  topK: number,
  how?: SearchHow,
): Promise<Hit[]> {
  const scoring = retriever === 'jaccard' ? jaccard(tokens.length) : bm25(index.size, index.averageSize);
  return index.search(tokens, scoring, topK, how);
}
