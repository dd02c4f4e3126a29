/** Runs `bench index`, one model after the other. */
import { run } from '../harness/run.ts';
import { assertNoUrl, repoName } from '../harness/systems.ts';
import type { Artifact } from '../report/artifact.ts';
import { type BenchModel, openModel } from '../system/model.ts';
import type { IndexBenchOptions } from './command.ts';
import { encoderWeights, measureEncoder, measureRuns } from './measure.ts';
import { INDEX } from './report.ts';
import type { EncoderResult, IndexingRun, IndexResult } from './result.ts';

interface Subject {
  /** Bundles that differ in the weights of their encoder. */
  readonly encoders: readonly BenchModel[];
  /** The bundle that other benches index with: if it is made from a published shape, its encoder is the stand-in. */
  readonly usual: BenchModel;
}

export async function runIndexing(options: IndexBenchOptions): Promise<Artifact<IndexResult>> {
  assertNoUrl(options, 'index', 'the indexer alone');
  const { data, path, cores } = options;
  const subjects: Subject[] = [];
  for (const name of options.models) subjects.push(await openSubject(name, options));
  const models = new Map(subjects.flatMap(({ encoders, usual }) => [...encoders, usual]).map((m) => [m.bundle, m]));
  return run(INDEX, options, { models: [...models.values()], settings: options }, async (onProgress) => {
    const encoders: EncoderResult[] = [];
    const runs: IndexingRun[] = [];
    for (const { encoders: bundles, usual } of subjects) {
      onProgress(usual.name);
      runs.push(...(await measureRuns(usual, { repo: repoName(options), path }, data, cores.length)));
      encoders.push(await measureEncoder(bundles, options, onProgress));
    }
    return { encoders, runs };
  });
}

async function openSubject(name: string, options: IndexBenchOptions): Promise<Subject> {
  const { data, precision, prefillPrecision, kv, encoder } = options;
  const made = { data, prefillPrecision, kv };
  const usual = await openModel(name, { ...made, precision });
  const quantised = encoder === 'stand-in' ? usual : await openModel(name, { ...made, precision, encoder });
  const exact = await openModel(name, { data, precision: 'fp32', encoder });
  // A bundle that is given as a folder has one precision.
  const differ = encoderWeights(quantised.manifest) !== encoderWeights(exact.manifest);
  return { usual, encoders: differ ? [quantised, exact] : [quantised] };
}
