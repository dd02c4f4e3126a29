/** Indexes a working tree repeatedly: all of it, or what has changed since this process indexed it last. */
import { type ErrorCode, ServingError } from '../lib/process/errors.ts';
import type { IndexReport } from './index-run.ts';
import type { Selecting } from './selection.ts';
import { changedSources, isEmptyTree, type Sources, treeSources } from './sources.ts';
import { TreeAway } from './tree.ts';

/** The index that a tree is brought into: in a store, or behind a gateway. */
export interface IndexTarget {
  /** Number of files in the version that is served; 0 where there is none. */
  files(): Promise<number>;
  /** Makes a version of the sources; a change set, if they name what they replace. */
  index(sources: Sources): Promise<IndexReport>;
}

/**
 * Failures of a change set after which all files are indexed: the index is not the one that the changes were worked out
 * against, so nobody knows what else differs from the tree.
 */
const NEEDS_ALL_FILES: readonly ErrorCode[] = ['index_moved', 'repo_not_found', 'store_invalid'];

/**
 * @returns a function that indexes the named files (relative, with forward slashes), or all files if none are named. It
 *   returns the files and folders that could not be read, of which the index keeps what it had. It throws TreeAway
 *   where the tree cannot be looked at, and, unless `mayBeEmpty`, where the tree holds no files and its index some.
 */
export function treeIndexer(dir: string, selecting: Selecting, target: IndexTarget) {
  let baseVersion: string | undefined;
  return async (changed?: ReadonlySet<string>, mayBeEmpty = false): Promise<readonly string[]> => {
    if (!mayBeEmpty && (await isEmptyTree(dir, selecting))) await assertWasEmpty(dir, target);
    let sources: Sources | undefined;
    const run = (each: Sources) => {
      sources = each;
      return target.index(each);
    };
    const all = async () => run(await treeSources(dir, selecting));
    const changes = async (paths: ReadonlySet<string>) =>
      run({ ...(await changedSources(dir, paths, selecting)), ...(baseVersion !== undefined && { baseVersion }) });
    const orAll = (error: unknown) => {
      if (error instanceof ServingError && NEEDS_ALL_FILES.includes(error.code)) return all();
      throw error;
    };
    const report = await (changed ? changes(changed).catch(orAll) : all());
    baseVersion = report.version;
    return [...(sources?.unreadable ?? [])];
  };
}

/** @throws TreeAway if the index of an empty tree holds files. */
async function assertWasEmpty(dir: string, target: IndexTarget): Promise<void> {
  const files = await target.files();
  if (files === 0) return;
  throw new TreeAway(
    `${dir} holds no files to index, and the index has ${files}: is it mounted, and is it the right folder? ` +
      '--allow-empty makes the index empty',
  );
}
