/** What a data set is asked for, and the part of it that decides which samples there are. */
import type { LANGUAGES } from '../choices.ts';
import type { DatasetRetriever } from './crossfile.ts';

export interface DatasetOptions {
  /** Folders of repositories, archives and parquet files. */
  readonly sources: readonly string[];
  /** Folder of the data set. A run that was stopped there goes on. */
  readonly to: string;
  readonly language: (typeof LANGUAGES)[number];
  /** The most samples of the training split; no limit where not given. */
  readonly samples: number | undefined;
  /** The share of repositories that are for validation, and of samples where these are limited. */
  readonly validShare: number;
  /** CSV of stars and licences by repository. */
  readonly about: string | undefined;
  /** File of names of repositories that are left out. */
  readonly exclude: string | undefined;
  /** The licences that are allowed; all where not given. */
  readonly licences: readonly string[] | undefined;
  readonly minStars: number;
  /** Whether somebody asked for so many stars: then the stars of one repository at least must be known. */
  readonly needsStars?: boolean;
  readonly minFiles: number;
  /** Files with fewer imports give chunks, and no holes. */
  readonly minImports: number;
  readonly maxFileBytes: number;
  /** Repositories with more source text are left out, in bytes. */
  readonly maxRepositoryBytes: number;
  /** Mean of the Poisson distribution of lines. */
  readonly meanLines: number;
  /** The most holes that are drawn of a repository. */
  readonly perRepository: number;
  /** Chunks of a sample: a hole for which fewer are found is left out. */
  readonly chunks: number;
  readonly retriever: DatasetRetriever;
  /** Whether a hole is left out whose chunks have no name that it needs; see needed-names.ts. All are kept at false. */
  readonly needsChunks?: boolean;
  readonly seed: number;
  /** Samples after which a shard ends, when its last repository does. */
  readonly shardSamples: number;
}

/** Where things lie, whose content is in the digest of the repositories; and what refuses to begin. */
const FREE = ['sources', 'to', 'about', 'exclude', 'needsStars'] as const;

export function recipeOf(options: DatasetOptions): Record<string, unknown> {
  const decide = Object.entries(options).filter(([name]) => !(FREE as readonly string[]).includes(name));
  return JSON.parse(JSON.stringify(Object.fromEntries(decide))) as Record<string, unknown>;
}
