/** Indexes a working tree again and again: all of it, or what has changed since this process indexed it last. */
import { ServingError } from '../lib/process/errors.ts';
import type { IndexReport } from './index-repository.ts';
import { changedSources, type Sources, treeSources } from './sources.ts';

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
    // Another indexer's version stands there now: what else differs from the tree is not known.
    const unlessMoved = (error: unknown) => {
      if (error instanceof ServingError && error.code === 'index_moved') return all();
      throw error;
    };
    const report = await (changed ? changes(changed).catch(unlessMoved) : all());
    baseVersion = report.version;
    return report;
  };
}
