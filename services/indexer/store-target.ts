/** The index of a working tree in a store that this process writes. */
import { ServingError } from '../lib/process/errors.ts';
import type { Store } from '../lib/rag/store/store.ts';
import { indexSources } from './index-run.ts';
import type { IndexTarget } from './tree-indexer.ts';
import type { IndexJob } from './version-builder.ts';

export const storeTarget = (job: Omit<IndexJob, 'sources'>): IndexTarget => ({
  files: () => publishedFiles(job.store, job.repo),
  index: (sources) => indexSources({ ...job, sources }),
});

/** Number of files in the current version; 0 where there is none, or none that can be read: it is replaced then. */
async function publishedFiles(store: Store, repo: string): Promise<number> {
  try {
    return (await store.head(repo))?.files ?? 0;
  } catch (error) {
    if (error instanceof ServingError && error.code === 'store_invalid') return 0;
    throw error;
  }
}
