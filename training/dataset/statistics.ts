/** Counts of what went into a data set, and of what was left out and why. */
import { SPLITS, type Split } from '../data/manifest.ts';
import type { FileReason } from './file-filter.ts';
import { MOST_LINES } from './holes.ts';
import type { SampleRow } from './sample-row.ts';

export type RepositoryReason =
  /** Named in the file of --exclude. */
  | 'excluded'
  /** Another source has a repository of the same name. */
  | 'same_name'
  | 'few_stars'
  /** Its licence is not known, or not among those of --licences. */
  | 'licence'
  | 'few_files'
  | 'too_large'
  | 'unreadable';

type HoleReason =
  /** The file ends before the hole does, or the hole is too long. */
  | 'does_not_fit'
  /** Other files give fewer chunks than --chunks. */
  | 'few_chunks'
  /** The code around it has all of its names that its chunks have; with --needs-chunks. */
  | 'no_needed_name';

interface SplitCounts {
  repositories: number;
  files: number;
  samples: number;
  /** By the number of lines of a hole, from 1 on. */
  lines: number[];
  /** Sums over samples, in UTF-16 units. */
  characters: { prompt: number; right: number; target: number; chunks: number };
  /** Sum over samples of the score of the best chunk. */
  bestScore: number;
}

export interface Counts {
  readonly leftOut: {
    readonly repositories: Partial<Record<RepositoryReason, number>>;
    readonly files: Partial<Record<FileReason, number>>;
    readonly holes: Partial<Record<HoleReason, number>>;
  };
  readonly splits: Record<Split, SplitCounts>;
}

export function noCounts(): Counts {
  const split = () => ({
    repositories: 0,
    files: 0,
    samples: 0,
    lines: new Array<number>(MOST_LINES).fill(0),
    characters: { prompt: 0, right: 0, target: 0, chunks: 0 },
    bestScore: 0,
  });
  return { leftOut: { repositories: {}, files: {}, holes: {} }, splits: { train: split(), valid: split() } };
}

export function countOne<T extends string>(counts: Partial<Record<T, number>>, reason: T): void {
  counts[reason] = (counts[reason] ?? 0) + 1;
}

/** Counts a sample. */
export function countSample(counts: SplitCounts, row: SampleRow, bestScore: number): void {
  counts.samples++;
  counts.lines[row.metadata.lines - 1]!++;
  counts.characters.prompt += row.prompt.length;
  counts.characters.right += row.right_context.length;
  counts.characters.target += row.groundtruth.length;
  counts.characters.chunks += row.crossfile_array.reduce((sum, chunk) => sum + chunk.length, 0);
  counts.bestScore += bestScore;
}

/** The counts as `dataset.json` has them: sums over samples as means. */
export function statisticsOf({ leftOut, splits }: Counts): Record<string, unknown> {
  const means = SPLITS.map((split) => {
    const { samples, characters, bestScore, lines, ...rest } = splits[split];
    const mean = (sum: number) => (samples === 0 ? 0 : Math.round((1_000 * sum) / samples) / 1_000);
    return [
      split,
      {
        ...rest,
        samples,
        samplesByLines: lines,
        meanCharacters: Object.fromEntries(Object.entries(characters).map(([name, sum]) => [name, mean(sum)])),
        meanScoreOfBestChunk: mean(bestScore),
      },
    ];
  });
  return { leftOut, ...Object.fromEntries(means) };
}
