/** Runs `bench retrieval` and `bench recall`. */
import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { run } from '../harness/run.ts';
import { assertNoUrl } from '../harness/systems.ts';
import type { Artifact } from '../report/artifact.ts';
import type { RecallOptions, RetrievalBenchOptions } from './command.ts';
import { measureRetrieval, type RetrievalResult } from './measure.ts';
import { measureRecall } from './recall.ts';
import { RECALL, RETRIEVAL } from './report.ts';

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
