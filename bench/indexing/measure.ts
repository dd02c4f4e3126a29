/** `bench index`: how fast a repository is encoded, and what it costs to find that nothing has changed. */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { runCli } from '../system/model.ts';

export interface IndexRun {
  readonly model: string;
  readonly run: 'first' | 'again';
  readonly chunks: number;
  readonly embedded: number;
  readonly seconds: number;
}

export interface IndexResult {
  readonly runs: readonly IndexRun[];
}

export interface IndexOptions {
  readonly model: string;
  readonly bundle: string;
  /** The repository. */
  readonly dir: string;
  readonly repo: string;
  /** Folder for the store. */
  readonly data: string;
  readonly threads: number;
}

/** Twice into an empty embedded store. Seconds are of the run itself, without loading the encoder. */
export async function measureIndex({ model, bundle, dir, repo, data, threads }: IndexOptions): Promise<IndexRun[]> {
  const scratch = await mkdtemp(join(data, 'index-'));
  try {
    const runs: IndexRun[] = [];
    for (const run of ['first', 'again'] as const) {
      const { chunks, embedded, seconds } = await index(
        bundle,
        `lmdb:${join(scratch, 'store')}`,
        repo,
        dir,
        join(scratch, 'report.json'),
        threads,
      );
      runs.push({ model, run, chunks, embedded, seconds });
    }
    return runs;
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

interface IndexReport {
  readonly chunks: number;
  readonly embedded: number;
  readonly seconds: number;
}

/** `llavacode index`, and what it reports. */
export async function index(
  bundle: string,
  store: string,
  repo: string,
  dir: string,
  json: string,
  threads: number,
): Promise<IndexReport> {
  const where = ['--model', bundle, '--store', store, '--threads', String(threads)];
  await runCli(['index', '--name', repo, '--path', dir, ...where, '--json', json]);
  return JSON.parse(await readFile(json, 'utf8')) as IndexReport;
}
