/** The names of the retrievers that requests and settings choose from, and what they need. */
import type { Bundle } from '../model/bundle/bundle.ts';
import { ServingError } from '../process/errors.ts';

/**
 * `jaccard` and `bm25` compare identifier sets, `dense` the encoder's embeddings, `fused` merges the three by
 * reciprocal rank, and `none` finds nothing. Jaccard is the default: the paper found it best (appendix F).
 */
export const RETRIEVERS = ['jaccard', 'bm25', 'dense', 'fused', 'none'] as const;
export type RetrieverName = (typeof RETRIEVERS)[number];
export const DEFAULT_RETRIEVER: RetrieverName = 'jaccard';

/** Whether a retriever compares embeddings: an index serves it only if its rows hold some. */
export const needsEmbeddings = (retriever: RetrieverName) => retriever === 'dense' || retriever === 'fused';

/**
 * Asserts that the bundle can make indexes for a retriever.
 * @throws ServingError config_invalid
 */
export function assertServes(bundle: Pick<Bundle, 'dir' | 'context'>, retriever: RetrieverName): void {
  if (bundle.context !== undefined || !needsEmbeddings(retriever)) return;
  throw new ServingError(
    'config_invalid',
    `--retriever ${retriever} compares embeddings, and ${bundle.dir} has no encoder: use jaccard or bm25, or ` +
      'export the model with --projector',
  );
}
