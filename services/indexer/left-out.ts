/**
 * The files that an index does not have, and why: kept beside the index, for whoever misses one. All are counted, and
 * as many are named as a person can look through.
 */
import { z } from 'zod';
import { normalisePath } from '../lib/rag/store/path-form.ts';
import { type LeftOut, MOST_LEFT_OUT } from '../lib/rag/store/store.ts';
import { SKIP_REASONS, type SkipCounts, type SkipReason } from './selection.ts';

/** A file with the reason; a folder whose name ends in `/` stands for all that it holds. */
export type NamedSkip = readonly [path: string, reason: SkipReason];

/** What was left out before anything was read. */
export interface LeftOutBefore {
  readonly files: readonly NamedSkip[];
  /** Files that `skipped` of the sources does not count: of trees, that does not count what .gitignore excludes. */
  readonly counts: Partial<SkipCounts>;
}

/** Collects names. Those that come after the first {@link MOST_LEFT_OUT} are counted by others, and not named. */
export class LeftOutNames {
  readonly #files: NamedSkip[] = [];
  #bytes = 0;

  add(path: string, reason: SkipReason): void {
    this.#bytes += Buffer.byteLength(path);
    if (this.#files.length < MOST_LEFT_OUT.files && this.#bytes <= MOST_LEFT_OUT.bytes)
      this.#files.push([path, reason]);
  }

  get files(): readonly NamedSkip[] {
    return this.#files;
  }
}

/**
 * Name of the file in which a client that has chosen the files itself sends what it has left out. An indexer that does
 * not know it leaves it out, as all files whose names begin with a dot.
 */
export const LEFT_OUT_FILE = '.llavacode-left-out.json';
/** Largest such file that is read, in bytes. */
export const LEFT_OUT_FILE_BYTES = 2 * MOST_LEFT_OUT.bytes;

export const writeLeftOut = (before: LeftOut): Buffer => Buffer.from(JSON.stringify(before));

const count = z.int().min(0).max(1e9);
const sent = z.object({
  files: z.array(z.tuple([z.string(), z.enum(SKIP_REASONS)])).max(MOST_LEFT_OUT.files),
  counts: z.partialRecord(z.enum(SKIP_REASONS), count),
});

/** Reads the file. One that is damaged costs nobody an index: nothing is known of it then. */
export function readLeftOut(bytes: Uint8Array): LeftOutBefore {
  try {
    const { files, counts } = sent.parse(JSON.parse(Buffer.from(bytes).toString()));
    return { files: files.filter(([path]) => isNormal(path)), counts };
  } catch {
    return { files: [], counts: {} };
  }
}

function isNormal(path: string): boolean {
  const file = path.replace(/\/$/, '');
  return normalisePath(file) === file;
}

/** What a run has left out, to be kept. */
export function leftOutOf(before: LeftOutBefore | undefined, names: LeftOutNames, skipped: SkipCounts): LeftOut {
  const all = new LeftOutNames();
  const files = [...(before?.files ?? []), ...names.files].sort(([a], [b]) => (a < b ? -1 : Number(a > b)));
  for (const [path, reason] of files) all.add(path, reason);
  const counts = SKIP_REASONS.map((reason) => [reason, skipped[reason] + (before?.counts[reason] ?? 0)] as const);
  return { counts: Object.fromEntries(counts.filter(([, number]) => number > 0)), files: all.files };
}

/**
 * The same after a change set. What was kept of files that it does not replace stays; of the others only those that
 * were named can be taken off the counts.
 */
export function leftOutAfter(
  kept: LeftOut | undefined,
  changes: LeftOut,
  replaced: Pick<ReadonlySet<string>, 'has'>,
): LeftOut {
  const counts: Record<string, number> = { ...kept?.counts };
  const stay = (kept?.files ?? []).filter(([path, reason]) => {
    if (!replaced.has(path)) return true;
    counts[reason] = Math.max(0, (counts[reason] ?? 0) - 1);
    return false;
  });
  for (const [reason, number] of Object.entries(changes.counts)) counts[reason] = (counts[reason] ?? 0) + number;
  const files = [...stay, ...changes.files].sort(([a], [b]) => (a < b ? -1 : Number(a > b)));
  return {
    counts: Object.fromEntries(Object.entries(counts).filter(([, number]) => number > 0)),
    files: files.slice(0, MOST_LEFT_OUT.files),
  };
}
