/**
 * Makes a data set from repositories: filters, holes, chunks of other files, a split by repository. Its folder:
 *
 *   dataset.json               settings, counts, shards and their digests; written last
 *   train-000000.jsonl.gz …    samples in the fields of the authors' code
 *   valid-000000.jsonl.gz …
 *   work/                      what a run that is stopped goes on from; removed at the end
 *
 * The same settings, repositories and seed give the same bytes, however often the run was stopped.
 */
import { access, realpath, rm } from 'node:fs/promises';
import { basename, dirname, isAbsolute, join, relative, resolve, sep } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { ServingError } from '../../services/lib/process/errors.ts';
import { atPath, makeFolder } from '../../services/lib/process/os-errors.ts';
import type { Progress } from '../../services/lib/process/progress.ts';
import { digestOfShards, MANIFEST, type Manifest, readManifest, type Split } from '../data/manifest.ts';
import { Cleanup } from '../run/cleanup.ts';
import { writeWhole } from '../run/files.ts';
import { lockRun } from '../run/lock.ts';
import { type Candidates, findCandidates } from './candidates.ts';
import { type Candidate, Sampler } from './sampler.ts';
import { SeenFiles } from './seen-files.ts';
import { type DatasetOptions, recipeOf } from './settings.ts';
import { Shards, workFolder } from './shards.ts';
import { type Counts, countSample, type RepositoryReason, statisticsOf } from './statistics.ts';
import { LanguageSyntax } from './syntax.ts';

/**
 * Makes the data set, or goes on with a run that was stopped in its folder.
 * @throws ServingError config_invalid, path_unusable (also where another process makes a data set in the folder),
 *   sample_invalid, spool_failed; the signal's reason. What was made of whole repositories is kept where the signal was
 *   aborted, and up to the last shard after any other end.
 */
export async function buildDataset(
  options: DatasetOptions,
  progress: Progress,
  signal: AbortSignal,
): Promise<Manifest> {
  await assertOutside(options);
  await using cleanup = new Cleanup();
  const syntax = await LanguageSyntax.load(options.language);
  cleanup.defer(() => syntax.dispose());
  const told = (what: string) => (done: number, files: number) =>
    progress.update(`${what}: ${done} of ${files} parquet files`);
  const covers = (path: string) => syntax.covers(path);
  const candidates = await findCandidates(options, covers, told('reading names'), signal);
  const recipe = { ...recipeOf(options), repositories: candidates.digest };
  await atPath(`--to ${options.to}`, () => makeFolder(options.to));
  cleanup.defer(await lockRun(options.to)); // two processes would take each other's shards away
  const made = await madeBefore(options.to, recipe);
  if (made) return made;
  const seen = new SeenFiles(options.seed);
  const shards = await Shards.open(options.to, JSON.stringify(recipe), seen);
  const work = workFolder(options.to);
  const opened = await candidates.open(work, told('bringing texts together'), signal);
  const sampler = new Sampler(options, syntax, seen, (text) => progress.warn(text));
  const counts = await sampleAll(opened, sampler, shards, options, progress, signal);
  if (counts.splits.train.samples === 0) {
    await shards.remove(); // with other settings there may be some
    throw noSamples(counts, candidates);
  }
  const manifest = manifestOf(recipe, shards, counts, candidates);
  await writeWhole(join(options.to, MANIFEST), `${JSON.stringify(manifest, null, 2)}\n`);
  await shards.removeWork();
  return manifest;
}

/**
 * @throws ServingError config_invalid for a data set in one of its own sources: what a run wrote there would be a
 *   repository of the next one.
 */
async function assertOutside({ to, sources }: DatasetOptions): Promise<void> {
  const place = await placeOf(resolve(to));
  for (const source of sources) {
    const way = relative(await placeOf(resolve(source)), place);
    if (way === '..' || way.startsWith(`..${sep}`) || isAbsolute(way)) continue;
    const message = `--to ${to} lies in the source ${source}, so that the data set would be read as a repository of it`;
    throw new ServingError('config_invalid', `${message}: name a folder outside of it`);
  }
}

/** The path without symbolic links, also of something that does not exist yet. */
async function placeOf(path: string): Promise<string> {
  const real = await realpath(path).catch(() => undefined);
  return real ?? (dirname(path) === path ? path : join(await placeOf(dirname(path)), basename(path)));
}

/** @throws ServingError config_invalid where another data set lies there. */
async function madeBefore(dir: string, recipe: Record<string, unknown>): Promise<Manifest | undefined> {
  const path = join(dir, MANIFEST);
  const exists = await access(path).then(
    () => true,
    () => false,
  );
  if (!exists) return undefined;
  const manifest = await readManifest(path);
  const asked = JSON.parse(JSON.stringify(recipe)) as unknown;
  if (!isDeepStrictEqual(manifest.recipe, asked)) {
    const message = `--to ${dir} holds a data set with other settings or repositories: use another --to`;
    throw new ServingError('config_invalid', message);
  }
  await rm(workFolder(dir), { recursive: true, force: true }); // the run was stopped after its last step
  return manifest;
}

async function sampleAll(
  candidates: readonly Candidate[],
  sampler: Sampler,
  shards: Shards,
  options: DatasetOptions,
  progress: Progress,
  signal: AbortSignal,
): Promise<Counts> {
  const counts = shards.counts;
  const limits = limitsOf(options);
  const rate = new Rate(candidates.length, limits.train, shards.done, counts.splits.train.samples);
  for (let i = shards.done; i < candidates.length; i++) {
    const candidate = candidates[i]!;
    const { split } = candidate;
    const ofSplit = counts.splits[split];
    if (ofSplit.samples >= limits[split]) continue;
    const before = structuredClone(counts);
    const made = await sampler.rows(candidate, counts, signal).catch(async (error) => {
      if (signal.aborted) await shards.keep(i, before);
      throw error;
    });
    const sampled = made.slice(0, limits[split] - ofSplit.samples);
    for (const { row, bestScore } of sampled) countSample(ofSplit, row, bestScore);
    shards.add(sampled.map(({ row }) => row));
    const ends = candidates[i + 1]?.split !== split || ofSplit.samples >= limits[split];
    if (ends || shards.waiting >= options.shardSamples) await shards.checkpoint(split, i + 1, counts);
    progress.update(rate.words(i + 1, counts.splits.train.samples));
  }
  return counts;
}

function limitsOf({ samples = Number.POSITIVE_INFINITY, validShare }: DatasetOptions): Readonly<Record<Split, number>> {
  return { train: samples, valid: Number.isFinite(samples) ? Math.max(1, Math.round(samples * validShare)) : samples };
}

/** How fast samples are made, and when the last one will be. */
class Rate {
  readonly #repositories: number;
  readonly #limit: number;
  readonly #startMs = performance.now();
  readonly #samplesBefore: number;
  readonly #shareBefore: number;

  constructor(repositories: number, limit: number, done: number, samples: number) {
    this.#repositories = repositories;
    this.#limit = limit;
    this.#samplesBefore = samples;
    this.#shareBefore = this.#share(done, samples);
  }

  /** The share of the work that is done. */
  #share(done: number, samples: number): number {
    return Math.min(1, Math.max(done / this.#repositories, samples / this.#limit));
  }

  words(done: number, samples: number): string {
    const seconds = (performance.now() - this.#startMs) / 1_000;
    const share = this.#share(done, samples);
    const left = Math.round((seconds * (1 - share)) / Math.max(1e-9, share - this.#shareBefore));
    const perSecond = (samples - this.#samplesBefore) / Math.max(1e-3, seconds);
    return `${done} of ${this.#repositories} repositories, ${samples} samples, ${perSecond.toFixed(1)} a second, ${left} s left`;
  }
}

/** What lets repositories in that were left out for a reason. */
const REMEDIES: Partial<Record<RepositoryReason, string>> = {
  excluded: 'shorten the list of --exclude',
  few_stars: 'lower --min-stars',
  licence: 'allow their licences with --licences, as SPDX identifiers',
  few_files: 'lower --min-files',
  too_large: 'raise --max-repository-bytes',
};

function noSamples({ leftOut, splits }: Counts, candidates: Candidates): ServingError {
  const repositories = repositoriesLeftOut(leftOut, candidates);
  const why = JSON.stringify({ ...leftOut, repositories });
  const read = splits.train.repositories + splits.valid.repositories;
  const remedies = [
    ...Object.keys(repositories).flatMap((reason) => REMEDIES[reason as RepositoryReason] ?? []),
    ...(read > 0 ? ['lower --min-imports or --chunks'] : []),
    'name more sources',
  ];
  const of = `no samples came of ${candidates.count} repositories; left out: ${why}`;
  return new ServingError('config_invalid', `${of}; ${remedies.join(', or ')}`);
}

function repositoriesLeftOut(leftOut: Counts['leftOut'], candidates: Candidates): Record<string, number> {
  const merged: Record<string, number> = { ...candidates.leftOut };
  for (const [reason, count] of Object.entries(leftOut.repositories)) merged[reason] = (merged[reason] ?? 0) + count;
  return merged;
}

function manifestOf(
  recipe: Record<string, unknown>,
  { shards }: Shards,
  counts: Counts,
  candidates: Candidates,
): Manifest {
  const ofSplit = (split: Split) => ({
    samples: counts.splits[split].samples,
    digest: digestOfShards(shards[split]),
    shards: [...shards[split]],
  });
  const leftOut = { ...counts.leftOut, repositories: repositoriesLeftOut(counts.leftOut, candidates) };
  return {
    format: 1,
    recipe,
    splits: { train: ofSplit('train'), valid: ofSplit('valid') },
    statistics: statisticsOf({ ...counts, leftOut }),
  };
}
