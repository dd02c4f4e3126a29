/** The names of the retrievers that requests and settings choose from. */

/**
 * `jaccard` and `bm25` compare identifier sets, `dense` the encoder's embeddings, `fused` merges the three by
 * reciprocal rank, and `none` finds nothing. Jaccard is the default: the paper found it best (appendix F).
 */
export const RETRIEVERS = ['jaccard', 'bm25', 'dense', 'fused', 'none'] as const;
export type RetrieverName = (typeof RETRIEVERS)[number];
export const DEFAULT_RETRIEVER: RetrieverName = 'jaccard';

/** Whether a retriever compares embeddings: an index serves it only if its rows hold some. */
export const needsEmbeddings = (retriever: RetrieverName) => retriever === 'dense' || retriever === 'fused';
