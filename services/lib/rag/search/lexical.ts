/** The two ways in which identifier sets are compared. Both are exact, and both search the same inverted index. */
import type { InvertedIndex, Scoring } from './inverted-index.ts';
import type { Hit, Range } from './retriever.ts';

/** |A∩B| / |A∪B|, in (0, 1]: the paper's retriever. */
export const jaccard = (querySize: number): Scoring => ({
  weight: () => 1,
  score: (shared, size) => {
    const common = Math.min(shared, size); // a bound on what is shared may be more than the chunk has
    return common / (querySize + size - common);
  },
});

/** Lucene's. */
const K1 = 1.2;
const B = 0.75;
/** Steps of one unit of inverse document frequency. */
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

/**
 * @param tokens distinct identifiers of the query.
 * @param excluded chunks that are left out: of the file being edited.
 */
export function searchLexical(
  index: InvertedIndex,
  retriever: 'jaccard' | 'bm25',
  tokens: readonly string[],
  topK: number,
  excluded?: Range,
): Hit[] {
  const scoring = retriever === 'jaccard' ? jaccard(tokens.length) : bm25(index.size, index.averageSize);
  return index.search(tokens, scoring, topK, excluded);
}
