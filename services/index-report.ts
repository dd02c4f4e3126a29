/** What a person is told of an index run: a bar while it goes on, and a line of figures at its end. */
import type { IndexReport } from './indexer/index-run.ts';
import type { SkipReason } from './indexer/selection.ts';
import type { IndexProgress } from './indexer/version-builder.ts';
import type { Progress } from './lib/process/progress.ts';
import { NO_VECTORS } from './lib/rag/store/row.ts';

/** Characters of the progress bar. */
const BAR = 24;

export const showProgress =
  (progress: Progress, repo: string) =>
  ({ files, filesRead, chunks, embedded }: IndexProgress) => {
    const done = files === 0 ? BAR : Math.floor((BAR * filesRead) / files);
    const bar = `${'█'.repeat(done)}${'░'.repeat(BAR - done)}`;
    progress.update(`${repo} ${bar} ${filesRead} of ${files} files, ${chunks} chunks, ${embedded} of them new`);
  };

/** Reasons for which a single word does not say what was left out. */
const LEFT_OUT: Partial<Record<SkipReason, string>> = {
  dependency: 'folders of dependencies (virtual environments, installed packages)',
  generated: 'generated, minified or lock files',
  notebook: "notebooks' outputs",
  invalid_utf8: 'not UTF-8',
  odd_name: 'with a control character or backslash in their name',
  unreadable: 'unreadable (what was indexed of them before is kept)',
};

export function summary({
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
  const named = left.map(([why, count]) => `${count} ${LEFT_OUT[why as SkipReason] ?? why}`);
  const leftOut = named.length > 0 ? `; left out: ${named.join(', ')}` : '';
  const bySource = unparsed > 0 ? `, ${unparsed} by source for want of a syntax tree` : '';
  const speed = embedded > 0 ? ` at ${(embedded / seconds).toFixed(0)} chunks/s` : '';
  const done = fingerprint === NO_VECTORS ? 'stored as text' : 'encoded';
  const what = `${chunks} chunks (${embedded} ${done}${speed}${bySource}, ${reused} kept, ${removed} removed), ${files} files read`;
  return `${repo}: ${what} in ${seconds.toFixed(1)} s, version ${version}${leftOut}`;
}
