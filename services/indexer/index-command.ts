/** `llavacode index`: indexes a working tree in this process, once, or with --watch again whenever it changes. */
import { contextLack, openBundle } from '../lib/model/bundle/bundle.ts';
import type { ServingError } from '../lib/process/errors.ts';
import { interruption } from '../lib/process/interrupt.ts';
import { type Progress, startProgress } from '../lib/process/progress.ts';
import { loadContextEncoder } from '../lib/rag/encode/encode.ts';
import { openStore } from '../lib/rag/store/open-store.ts';
import { repoKey } from '../lib/rag/store/repo-key.ts';
import { NO_VECTORS } from '../lib/rag/store/row.ts';
import { type IndexReport, indexSources } from './index-run.ts';
import type { IndexConfig } from './settings.ts';
import { treeIndexer } from './tree-indexer.ts';
import type { IndexProgress } from './version-builder.ts';
import { watchTree } from './watch.ts';

interface IndexCommand {
  readonly tenant: string;
  /** The tenant's name for the repository. */
  readonly repo: string;
  readonly dir: string;
  readonly watch: boolean;
}

/**
 * @returns the report of the last run.
 * @throws ServingError; Interrupted. The version that was served before stays.
 */
export async function runIndex(
  config: IndexConfig,
  { tenant, repo: name, dir, watch }: IndexCommand,
): Promise<IndexReport | undefined> {
  const repo = repoKey(tenant, name);
  const stop = interruption();
  const progress = startProgress('loading the encoder');
  const closers: (() => unknown)[] = [];
  try {
    const bundle = await openBundle(config.model);
    const encoder = await loadContextEncoder(bundle, config);
    closers.push(() => encoder.dispose());
    const lack = contextLack(bundle.manifest);
    if (lack) progress.warn(lack);
    const store = await openStore(config.store, 'indexing');
    closers.push(() => store.close());
    let report: IndexReport | undefined;
    const index = treeIndexer(dir, config.maxFileBytes, async (sources) => {
      progress.start(`indexing ${dir} as ${repo}`);
      const onProgress = showProgress(progress, repo);
      report = await indexSources({ repo, sources, store, encoder, options: config, signal: stop, onProgress });
      progress.succeed(summary(report));
      return report;
    });
    if (watch) {
      const onFailure = ({ message, kind }: ServingError) =>
        progress.warn(
          kind.retryable ? `${message}; trying again` : `changes in part of the tree may go unseen: ${message}`,
        );
      await watchTree({ dir, index, onFailure, signal: stop });
    } else await index();
    return report;
  } catch (error) {
    progress.fail();
    throw error;
  } finally {
    for (const close of closers.toReversed()) await close();
  }
}

/** Characters of the progress bar. */
const BAR = 24;

const showProgress =
  (progress: Progress, repo: string) =>
  ({ files, filesRead, chunks, embedded }: IndexProgress) => {
    const done = files === 0 ? BAR : Math.floor((BAR * filesRead) / files);
    const bar = `${'█'.repeat(done)}${'░'.repeat(BAR - done)}`;
    progress.update(`${repo} ${bar} ${filesRead} of ${files} files, ${chunks} chunks, ${embedded} of them new`);
  };

function summary({
  repo,
  version,
  fingerprint,
  files,
  skipped,
  chunks,
  embedded,
  reused,
  removed,
  unparsed,
  seconds,
}: IndexReport): string {
  const left = Object.entries(skipped).filter(([, count]) => count > 0);
  const leftOut = left.length > 0 ? `; left out: ${left.map(([why, count]) => `${count} ${why}`).join(', ')}` : '';
  const bySource = unparsed > 0 ? `, ${unparsed} by source for want of a syntax tree` : '';
  const speed = embedded > 0 ? ` at ${(embedded / seconds).toFixed(0)} chunks/s` : '';
  const done = fingerprint === NO_VECTORS ? 'stored as text' : 'encoded';
  const what = `${chunks} chunks (${embedded} ${done}${speed}${bySource}, ${reused} kept, ${removed} removed), ${files} files read`;
  return `${repo}: ${what} in ${seconds.toFixed(1)} s, version ${version}${leftOut}`;
}
