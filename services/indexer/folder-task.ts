/**
 * The indexing of folders of this machine, which `llavacode up` has its indexer do when it starts: the encoder is
 * loaded there already.
 */
import type { Logger } from '../lib/process/log.ts';
import type { ContextEncoder } from '../lib/rag/encode/encode.ts';
import type { Store } from '../lib/rag/store/store.ts';
import { gitRemote } from './git-remote.ts';
import type { IndexReport } from './index-run.ts';
import { storeTarget } from './store-target.ts';
import { treeIndexer } from './tree-indexer.ts';
import type { IndexOptions, IndexProgress } from './version-builder.ts';

/** What the supervisor asks for; it gets an {@link IndexReport}, and before that {@link IndexProgress}. */
export interface FolderTask {
  /** Absolute path of the folder. */
  readonly dir: string;
  /** Key of the repository: see repoKey. */
  readonly repo: string;
}

interface FolderParts {
  readonly store: Store;
  readonly encoder: ContextEncoder;
  readonly options: IndexOptions;
  /** Ends the run. */
  readonly signal: AbortSignal;
  readonly log: Pick<Logger, 'info'>;
}

/** @throws ServingError as of indexSources; TreeAway. The version that was served before stays then. */
export async function indexFolder(
  { dir, repo }: FolderTask,
  { log, ...parts }: FolderParts,
  onProgress: (progress: IndexProgress) => void,
): Promise<IndexReport> {
  const target = storeTarget({ ...parts, repo, remoteUrl: await gitRemote(dir), onProgress });
  let report: IndexReport | undefined;
  const index = treeIndexer(dir, parts.options, {
    ...target,
    index: async (sources) => {
      report = await target.index(sources);
      return report;
    },
  });
  await index();
  log.info({ ...(report as IndexReport) }, 'indexed');
  return report as IndexReport;
}
