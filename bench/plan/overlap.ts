/** The time in which all streams of a batch generate at once. */
import type { ClientRecord } from '../measure/latency.ts';
import { mean } from '../measure/statistics.ts';

interface Overlap {
  /** Mean time between two tokens while all sequences generate; undefined if they never do. */
  readonly ms: number | undefined;
  /** Mean time between two tokens at any time. */
  readonly anyMs: number;
  /** Mean number of tokens per sequence while all sequences generate. */
  readonly steps: number;
  /** Time from the first token of the first sequence to that of the last. */
  readonly startsMs: number;
}

/**
 * Describes the time between the last start and the first end. It uses means: if the client is late, several tokens
 * come at once, and the median would be too small.
 */
export function overlapOf(records: readonly Pick<ClientRecord, 'chunksMs'>[]): Overlap {
  const starts = records.map(({ chunksMs }) => chunksMs[0]!);
  const from = Math.max(...starts);
  const to = Math.min(...records.map(({ chunksMs }) => chunksMs.at(-1)!));
  const all = records.flatMap(({ chunksMs }) => chunksMs.slice(1).map((at, i) => [chunksMs[i]!, at] as const));
  const together = all.filter(([before, at]) => before >= from && at <= to);
  const lengths = (pairs: typeof all) => pairs.map(([before, at]) => at - before);
  return {
    ms: together.length === 0 ? undefined : mean(lengths(together)),
    anyMs: mean(lengths(all)),
    steps: together.length / records.length,
    startsMs: from - Math.min(...starts),
  };
}
