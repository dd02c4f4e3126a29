/** Runs `bench retrieval`, `bench recall` and `bench dense`. */
import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { run } from '../harness/run.ts';
import { assertNoUrl } from '../harness/systems.ts';
import type { Artifact } from '../report/artifact.ts';
import type { DenseBenchOptions, RecallOptions, RetrievalBenchOptions } from './command.ts';
import { measureDenseSearch } from './dense-search.ts';
import { measureRetrieval, type RetrievalResult } from './measure.ts';
import { measureRecall } from './recall.ts';
import { DENSE, RECALL, RETRIEVAL } from './report.ts';

export async function runRetrieval(options: RetrievalBenchOptions): Promise<Artifact<RetrievalResult>> {
  assertNoUrl(options, 'retrieval', 'the stores alone');
  const { topK, redis } = options;
  return run(RETRIEVAL, options, { models: [], settings: options }, async (onProgress) => {
    const scratch = await mkdtemp(join(options.data, 'retrieval-'));
    try {
      onProgress('embedded');
      const embedded = await measureRetrieval(`lmdb:${scratch}`, options);
      if (redis === undefined) {
        return { topK, runs: embedded, notRun: ['Redis was not measured, because no `--redis URL` was given.'] };
      }
      onProgress('redis');
      return { topK, runs: [...embedded, ...(await measureRetrieval(redis, options))], notRun: [] };
    } finally {
      await rm(scratch, { recursive: true, force: true });
    }
  });
}

export async function runRecall(options: RecallOptions): Promise<void> {
  await run(RECALL, options, { models: [], settings: options }, (onProgress) => measureRecall(options, onProgress));
}

export async function runDense(options: DenseBenchOptions): Promise<void> {
  const plan = { models: [], settings: options };
  await run(DENSE, options, plan, async (onProgress) => ({ searches: await measureDenseSearch(options, onProgress) }));
}
