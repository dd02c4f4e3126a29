/** The commands `llavacode bench retrieval`, `llavacode bench recall` and `llavacode bench dense`. */
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { count } from '../../services/lib/process/count-argument.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { counts, numbers, option, optional, type ParsedOptions, SYSTEM_OPTIONS, text, whole } from '../options.ts';

export const RETRIEVAL_COMMAND = {
  name: 'retrieval',
  description: 'top-k latency against the number of chunks',
  options: {
    sizes: option('<list>', 'sizes of the index in chunks', numbers, [1000, 10_000, 100_000]),
    queries: option('<n>', 'queries per size', whole, 500),
    topK: option('<n>', 'chunks to find', whole, 10),
    redis: optional('<url>', 'a Redis to measure as well; the bench writes to it', text),
    ...SYSTEM_OPTIONS,
  },
};
export type RetrievalBenchOptions = ParsedOptions<typeof RETRIEVAL_COMMAND>;

export const RECALL_COMMAND = {
  name: 'recall',
  description: 'which retriever finds the chunk that is needed, and what search and index cost by size',
  options: {
    llm: option('<dir>', 'checkpoint whose encoder is used', text, join(PACKAGE_ROOT, 'models', 'tiny-coder')),
    sizes: option('<list>', 'sizes of the index in chunks', counts, [10_000, 100_000, 1_000_000]),
    threads: option('<n>', 'threads of the encoder', count, availableParallelism()),
  },
};
export type RecallOptions = ParsedOptions<typeof RECALL_COMMAND>;

export const DENSE_COMMAND = {
  name: 'dense',
  description: 'the exact dense search beside the one of large indexes',
  options: {
    sizes: option('<list>', 'sizes of the index in chunks', counts, [200_000, 1_000_000]),
    dim: option('<n>', 'values of an embedding', count, 256),
    queries: option('<n>', 'searches of each kind', count, 40),
    seed: option('<n>', 'seed of the embeddings, which are made', whole, 1),
  },
};
export type DenseBenchOptions = ParsedOptions<typeof DENSE_COMMAND>;
