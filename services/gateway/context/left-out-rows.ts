/**
 * Counts and logs rows of the store that were left out because they are damaged or too large. Completions meet the same
 * row again and again, so each is logged once.
 */
import { LRUCache } from 'lru-cache';
import type { Logger } from '../../lib/process/log.ts';
import { metrics } from '../../lib/process/metrics.ts';
import type { LeftOutRow } from '../../lib/rag/store/store.ts';

/** Rows of which it is remembered that they were logged. */
const MOST_LOGGED = 1_024;

export function leftOutReporter(log: Pick<Logger, 'warn'>): (repo: string, row: LeftOutRow) => void {
  const logged = new LRUCache<string, true>({ max: MOST_LOGGED });
  return (repo, { id, reason, why }) => {
    metrics.storeRowsLeftOut.inc({ reason });
    const name = `${repo} ${id} ${reason}`;
    if (reason === 'later' || logged.has(name)) return;
    logged.set(name, true);
    log.warn({ repo, chunk: id, reason, why }, 'a row of the store was left out: completions go on without it');
  };
}
