/** `bench index` measures how fast a repository is encoded, and how long it takes to find that nothing has changed. */
import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { type IndexTarget, reportedIndex } from '../system/cli.ts';
import type { BenchModel } from '../system/model.ts';

export interface IndexingRun {
  readonly model: string;
  readonly run: 'first' | 'again';
  readonly chunks: number;
  readonly embedded: number;
  readonly seconds: number;
}

export interface IndexResult {
  readonly runs: readonly IndexingRun[];
}

/**
 * Indexes twice into a store that is empty at first. The seconds are those of the run itself, without loading the
 * encoder.
 * @param data folder for the store.
 */
export async function measureIndex(
  { name: model, bundle }: BenchModel,
  { repo, path }: Pick<IndexTarget, 'repo' | 'path'>,
  data: string,
  threads: number,
): Promise<IndexingRun[]> {
  const scratch = await mkdtemp(join(data, 'index-'));
  try {
    const command = { bundle, store: `lmdb:${join(scratch, 'store')}`, repo, path };
    const runs: IndexingRun[] = [];
    for (const run of ['first', 'again'] as const) {
      const { chunks, embedded, seconds } = await reportedIndex(command, threads, join(scratch, 'report.json'));
      runs.push({ model, run, chunks, embedded, seconds });
    }
    return runs;
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}
