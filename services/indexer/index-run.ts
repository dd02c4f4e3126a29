/**
 * One index run, from sources to chunks to vectors to the store. Chunks that are stored with this encoder's fingerprint
 * are not encoded again. Readers see the old version until all of the new one is there.
 */
import { ServingError } from '../lib/process/errors.ts';
import { metrics } from '../lib/process/metrics.ts';
import type { SkipCounts } from './selection.ts';
import { type IndexJob, VersionBuilder } from './version-builder.ts';

export interface IndexReport {
  readonly repo: string;
  readonly version: string;
  readonly fingerprint: string;
  /** False if the stored version was this one already. */
  readonly changed: boolean;
  /** Files that gave chunks or were blank. For a change set: among the changed files. */
  readonly files: number;
  /** What was left out, by reason: see SKIP_REASONS. */
  readonly skipped: Readonly<SkipCounts>;
  readonly chunks: number;
  readonly embedded: number;
  readonly reused: number;
  /** Embedded chunks that were to be read by their syntax tree, do not parse, and were read by their source. */
  readonly unparsed: number;
  /**
   * Chunks, and rows of files, that are gone now: of versions before the one that was replaced, or of runs that broke
   * off.
   */
  readonly removed: number;
  readonly seconds: number;
}

/** How long a dead indexer keeps others out. */
const LOCK_TTL_MS = 15_000;

/**
 * Indexes a repository, or brings changes into its index. If it fails, the version that was served before stays.
 * @throws ServingError invalid_request, index_locked, store_unavailable, or what the encoder throws; for changes also
 *   repo_not_found, index_moved, store_invalid; the signal's reason.
 */
export async function indexSources(job: IndexJob): Promise<IndexReport> {
  try {
    const report = await runIndex(job);
    metrics.indexRuns.inc({ outcome: 'ok' });
    metrics.lastIndexRun.setToCurrentTime();
    metrics.indexedChunks.inc({ outcome: 'embedded' }, report.embedded);
    metrics.indexedChunks.inc({ outcome: 'reused' }, report.reused);
    metrics.indexedChunks.inc({ outcome: 'removed' }, report.removed);
    for (const [reason, count] of Object.entries(report.skipped)) metrics.skippedFiles.inc({ reason }, count);
    return report;
  } catch (error) {
    metrics.indexRuns.inc({ outcome: ServingError.from(error).code });
    throw error;
  }
}

async function runIndex(job: IndexJob): Promise<IndexReport> {
  const startedAt = performance.now();
  const writer = await job.store.lock(job.repo, LOCK_TTL_MS);
  try {
    const next = new VersionBuilder(job, writer, await writer.stored(job.encoder.fingerprint));
    await next.build();
    const { version, changed, replaced } = await next.publish();
    await next.keepLeftOut();
    // Readers use the replaced version until they have loaded the new one, so its chunks are removed by the next run.
    const removed = await writer.sweep(replaced);
    const { files, skipped, embedded, reused, unparsed } = next;
    return {
      repo: job.repo,
      version,
      fingerprint: job.encoder.fingerprint,
      changed,
      files,
      skipped,
      chunks: embedded + reused,
      embedded,
      reused,
      unparsed,
      removed,
      seconds: (performance.now() - startedAt) / 1000,
    };
  } finally {
    // If the store has gone, the lock goes when its time is over.
    await writer.release().catch(() => {});
  }
}
