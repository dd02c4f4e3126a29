/** `bench retrieval`: top-k latency against the number of chunks. */
import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { run } from '../harness/run.ts';
import { assertNoUrl, type BenchOptions, systemSettings } from '../harness/systems.ts';
import type { Artifact } from '../report/artifact.ts';
import { measureRetrieval, type RetrievalResult } from './measure.ts';

export async function runRetrieval(
  options: BenchOptions,
  retrieval: {
    readonly sizes: readonly number[];
    readonly queries: number;
    readonly topK: number;
    readonly redis?: string;
  },
): Promise<Artifact<RetrievalResult>> {
  assertNoUrl(options, 'retrieval', 'the stores alone');
  return run(
    options,
    { bench: 'retrieval', models: [], settings: { ...systemSettings(options), ...retrieval, redis: undefined } },
    async (onProgress) => {
      const { sizes, redis } = retrieval;
      const how = { dir: options.path, topK: retrieval.topK, queries: retrieval.queries, seed: options.seed };
      const scratch = await mkdtemp(join(options.data, 'retrieval-'));
      try {
        onProgress('embedded');
        const embedded = await measureRetrieval(`lmdb:${scratch}`, sizes, how);
        if (redis === undefined)
          return { topK: how.topK, runs: embedded, notRun: ['Redis was not measured: no `--redis URL` was given.'] };
        onProgress('redis');
        return { topK: how.topK, runs: [...embedded, ...(await measureRetrieval(redis, sizes, how))], notRun: [] };
      } finally {
        await rm(scratch, { recursive: true, force: true });
      }
    },
  );
}
