/** Indexes a working tree once, as `llavacode index` does. */
import { type IndexReport, indexSources } from '../../services/indexer/index-run.ts';
import { treeSources } from '../../services/indexer/sources.ts';
import type { IndexJob } from '../../services/indexer/version-builder.ts';

export async function indexTree(job: Omit<IndexJob, 'sources'> & { readonly dir: string }): Promise<IndexReport> {
  return indexSources({ ...job, sources: await treeSources(job.dir, job.options) });
}
