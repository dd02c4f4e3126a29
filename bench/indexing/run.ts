/** Runs `bench index`, one model after the other. */
import { run } from '../harness/run.ts';
import { assertNoUrl, type PreparedModel, prepareModel, repoName } from '../harness/systems.ts';
import type { Artifact } from '../report/artifact.ts';
import type { IndexBenchOptions } from './command.ts';
import { type IndexingRun, type IndexResult, measureIndex } from './measure.ts';
import { INDEX } from './report.ts';

export async function runIndexing(options: IndexBenchOptions): Promise<Artifact<IndexResult>> {
  assertNoUrl(options, 'index', 'the indexer alone');
  const { data, path, cores } = options;
  const prepared: PreparedModel[] = [];
  for (const name of options.models) prepared.push(await prepareModel(name, options));
  const plan = { models: prepared.map(({ model }) => model), settings: options };
  return run(INDEX, options, plan, async (onProgress) => {
    const runs: IndexingRun[] = [];
    for (const { model } of prepared) {
      onProgress(model.name);
      runs.push(...(await measureIndex(model, { repo: repoName(options), path }, data, cores.length)));
    }
    return { runs };
  });
}
