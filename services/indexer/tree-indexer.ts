/** Indexes a working tree again and again: all of it, or what has changed since this process indexed it last. */
import { type ErrorCode, ServingError } from '../lib/process/errors.ts';
import type { IndexReport } from './index-run.ts';
import { changedSources, type Sources, treeSources } from './sources.ts';

/** Why changes were not brought into the index, and what all files mend: whatever else differs from the tree is not known. */
const TO_BE_REPLACED: readonly ErrorCode[] = ['index_moved', 'repo_not_found', 'store_invalid'];

/**
 * @param run indexes the sources it is given.
 * @returns indexes the files named (relative, with forward slashes), or all where none are.
 */
export function treeIndexer(dir: string, maxFileBytes: number, run: (sources: Sources) => Promise<IndexReport>) {
  let baseVersion: string | undefined;
  return async (changed?: ReadonlySet<string>): Promise<IndexReport> => {
    const all = async () => run(await treeSources(dir, maxFileBytes));
    const changes = async (paths: ReadonlySet<string>) =>
      run({ ...(await changedSources(dir, paths, maxFileBytes)), baseVersion });
    const orAll = (error: unknown) => {
      if (error instanceof ServingError && TO_BE_REPLACED.includes(error.code)) return all();
      throw error;
    };
    const report = await (changed ? changes(changed).catch(orAll) : all());
    baseVersion = report.version;
    return report;
  };
}
