/**
 * The repositories that may become part of a data set, in the order in which they are read: those for validation first.
 * Order and split depend on the seed and on names alone.
 */
import { join } from 'node:path';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { Split } from '../data/manifest.ts';
import { type About, readAbout, readExcluded } from './about.ts';
import { hash52 } from './random.ts';
import { findSources, type Repository } from './repositories.ts';
import type { Candidate } from './sampler.ts';
import type { DatasetOptions } from './settings.ts';
import { readStackNames, type StackRepository, StackSpool } from './stack.ts';
import { countOne, type RepositoryReason } from './statistics.ts';

/** An archive may unpack to so many times the source text that a repository may have: it holds other files as well. */
const UNPACKED_FACTOR = 64;
/** A repository of parquet files is left out where its estimated size is so many times the bound. */
const ESTIMATE_FACTOR = 4;

interface Named {
  readonly name: string;
  readonly about: About;
  /** Absent for one of parquet files, whose texts are spooled first. */
  readonly repository?: Repository;
  /** Present for one of parquet files. */
  readonly stack?: StackRepository;
}

export interface Candidates {
  /** Digest of their names, places and what is known of them, in hex. */
  readonly digest: number;
  readonly leftOut: Partial<Record<RepositoryReason, number>>;
  readonly count: number;
  /** Makes them ready to be opened. @param dir for the texts of parquet files */
  open(dir: string, onFile: (done: number, files: number) => void, signal: AbortSignal): Promise<Candidate[]>;
}

/**
 * @param covers whether a file is of the language
 * @param onFile told how many parquet files have been looked through
 * @throws ServingError config_invalid, path_unusable, sample_invalid; the signal's reason.
 */
export async function findCandidates(
  options: DatasetOptions,
  covers: (path: string) => boolean,
  onFile: (done: number, files: number) => void,
  signal: AbortSignal,
): Promise<Candidates> {
  const { seed, validShare, maxFileBytes, maxRepositoryBytes } = options;
  const [known, excluded] = [await readAbout(options.about), await readExcluded(options.exclude)];
  const limits = { maxFileBytes, maxUnpackedBytes: UNPACKED_FACTOR * maxRepositoryBytes };
  const { repositories, parquet } = await findSources(options.sources, limits);
  const told = (done: number) => onFile(done, parquet.length);
  const stack = await readStackNames(parquet, covers, told, signal);
  assertStarsKnown(options, [...known.values(), ...stack.map(({ about }) => about)]);
  const leftOut: Candidates['leftOut'] = {};
  const named = new Map<string, Named>();
  const all: Named[] = [
    ...repositories.map((repository) => ({ name: repository.name, about: {}, repository })),
    ...stack.map((each) => ({ name: each.name, about: each.about, stack: each })),
  ];
  for (const each of all) {
    const listed = known.get(each.name);
    const about = { stars: listed?.stars ?? each.about.stars, licences: listed?.licences ?? each.about.licences };
    const reason = named.has(each.name) ? 'same_name' : refusal({ ...each, about }, excluded, options);
    if (reason === undefined) named.set(each.name, { ...each, about });
    else countOne(leftOut, reason);
  }
  const ordered = [...named.values()]
    .map((each) => ({ ...each, rank: hash52('order', String(seed), each.name) }))
    .sort((a, b) => a.rank - b.rank || (a.name < b.name ? -1 : 1));
  const held = validCount(ordered.length, validShare);
  const splitOf = (i: number): Split => (i < held ? 'valid' : 'train');
  const facts = ordered.map(({ name, about, stack }, i) => [name, splitOf(i), about, stack?.files]);
  return {
    digest: hash52(JSON.stringify(facts)),
    leftOut,
    count: ordered.length,
    open: async (dir, onFile, signal) => {
      const wanted = ordered.flatMap(({ stack }) => stack ?? []);
      const told = (done: number) => onFile(done, parquet.length);
      const spool =
        wanted.length === 0
          ? undefined
          : await StackSpool.make(join(dir, 'spool'), parquet, wanted, maxFileBytes, covers, told, signal);
      return ordered.map(({ name, repository, about }, i) => ({
        repository: repository ?? spool!.repository(name),
        split: splitOf(i),
        licences: about.licences,
      }));
    },
  };
}

/** @throws ServingError config_invalid where a limit of stars was asked for, and would let all repositories in. */
function assertStarsKnown({ needsStars, minStars }: DatasetOptions, known: readonly About[]): void {
  if (!needsStars || known.some(({ stars }) => stars !== undefined)) return;
  const why = `--min-stars ${minStars} would have no effect: of no repository the stars are known`;
  const remedy = 'give --about with a CSV that has the columns repository and stars, or leave it out';
  throw new ServingError('config_invalid', `${why}: ${remedy}`);
}

/** Why a repository is left out by what is known of it before it is opened. */
function refusal(
  { name, about, stack }: Named,
  excluded: ReadonlySet<string>,
  { minStars, minFiles, licences, maxRepositoryBytes }: DatasetOptions,
): RepositoryReason | undefined {
  if (excluded.has(name)) return 'excluded';
  if (about.stars !== undefined && about.stars < minStars) return 'few_stars';
  if (stack !== undefined && stack.files < minFiles) return 'few_files';
  if (stack !== undefined && stack.bytes > ESTIMATE_FACTOR * maxRepositoryBytes) return 'too_large';
  if (licences === undefined || about.licences === undefined) return undefined;
  return about.licences.length > 0 && about.licences.every((each) => licences.includes(each)) ? undefined : 'licence';
}

/** At least one of two repositories or more is for validation, and at least one for training. */
function validCount(repositories: number, share: number): number {
  if (share === 0 || repositories < 2) return 0;
  return Math.min(repositories - 1, Math.max(1, Math.round(share * repositories)));
}
