/** `bench index`: how fast a repository is encoded. */

import { run } from '../harness/run.ts';
import {
  assertNoUrl,
  type BenchOptions,
  type PreparedModel,
  prepareModel,
  repoName,
  systemSettings,
} from '../harness/systems.ts';
import type { Artifact } from '../report/artifact.ts';
import { parseCores } from '../system/cores.ts';
import { type IndexResult, type IndexRun, measureIndex } from './measure.ts';

export async function runIndexing(
  options: BenchOptions,
  modelNames: readonly string[],
): Promise<Artifact<IndexResult>> {
  assertNoUrl(options, 'index', 'the indexer alone');
  const prepared: PreparedModel[] = [];
  for (const name of modelNames) prepared.push(await prepareModel(name, options));
  const threads = parseCores(options.cores).length;
  return run(
    options,
    { bench: 'index', models: prepared.map(({ model }) => model), settings: { ...systemSettings(options), threads } },
    async (onProgress) => {
      const runs: IndexRun[] = [];
      for (const { model } of prepared) {
        onProgress(model.name);
        const { data, path: dir } = options;
        runs.push(
          ...(await measureIndex({
            model: model.name,
            bundle: model.bundle,
            dir,
            repo: repoName(options),
            data,
            threads,
          })),
        );
      }
      return { runs };
    },
  );
}
