/** Indexes a working tree repeatedly: all of it, or what has changed since this process indexed it last. */
import { type ErrorCode, ServingError } from '../lib/process/errors.ts';
import type { IndexReport } from './index-run.ts';
import { changedSources, type Sources, treeSources } from './sources.ts';

/**
 * Failures of a change set after which all files are indexed: the index is not the one that the changes were worked out
 * against, so nobody knows what else differs from the tree.
 */
const NEEDS_ALL_FILES: readonly ErrorCode[] = ['index_moved', 'repo_not_found', 'store_invalid'];

/**
 * @param run indexes the sources that it is given.
 * @returns a function that indexes the named files (relative, with forward slashes), or all files if none are named.
 */
export function treeIndexer(dir: string, maxFileBytes: number, run: (sources: Sources) => Promise<IndexReport>) {
  let baseVersion: string | undefined;
  return async (changed?: ReadonlySet<string>): Promise<IndexReport> => {
    const all = async () => run(await treeSources(dir, maxFileBytes));
    const changes = async (paths: ReadonlySet<string>) =>
      run({ ...(await changedSources(dir, paths, maxFileBytes)), baseVersion });
    const orAll = (error: unknown) => {
      if (error instanceof ServingError && NEEDS_ALL_FILES.includes(error.code)) return all();
      throw error;
    };
    const report = await (changed ? changes(changed).catch(orAll) : all());
    baseVersion = report.version;
    return report;
  };
}
