/** Runs one drill on a running system under open-loop load. */
import { ServingError } from '../../services/lib/process/errors.ts';
import { RandomStream } from '../measure/arrivals.ts';
import type { DrillsOptions } from './command.ts';
import { type DrillResult, judge, type Mark, notRun } from './judge.ts';
import type { Drill } from './scene.ts';
import type { Ground } from './stages.ts';
import { type Reference, type StreamRecord, sendBurst, sendTraffic } from './streams.ts';

export async function runDrill(
  drill: Drill,
  references: readonly Reference[],
  ground: Ground,
  { rate, seed, count, seconds }: Pick<DrillsOptions, 'rate' | 'seed' | 'count' | 'seconds'>,
): Promise<DrillResult> {
  const { fleet } = ground;
  const impossible = drill.impossible?.(ground);
  if (impossible !== undefined) return notRun(drill, impossible);
  const startMs = performance.now();
  const now = () => performance.now() - startMs;
  const marks: Mark[] = [];
  const mark = () => {
    const made: Mark = { atMs: now() };
    marks.push(made);
    return () => {
      made.mendedMs = now();
    };
  };
  const sent: Promise<StreamRecord>[] = [];
  const burst = () => {
    const more = sendBurst(fleet, references, startMs);
    sent.push(...more);
    return Promise.all(more);
  };
  const over = new AbortController();
  const shape = { rate, seed, leaving: drill.leaving };
  const traffic = sendTraffic(fleet, references, shape, startMs, over.signal);
  let [note, broken] = ['', ''];
  try {
    const random = new RandomStream(seed + 7);
    note = (await drill.disturb({ ...ground, count, seconds, references, random, mark, burst })) ?? '';
  } catch (error) {
    broken = ServingError.from(error).message;
  }
  over.abort();
  // Requests after the last disturbance must be answered.
  if (marks.length > 0) await burst();
  const records = [...(await traffic), ...(await Promise.all(sent))];
  const remains = await fleet.settle();
  const result = judge(drill, records, marks, [broken, remains].filter((text) => text !== '').join('; '));
  return { ...result, note: [note, withoutContext(records)].filter((text) => text !== '').join('; ') };
}

/** How many answers had no context, and why; '' where all had it. */
function withoutContext(records: readonly StreamRecord[]): string {
  const counts = new Map<string, number>();
  for (const { degraded } of records) if (degraded) counts.set(degraded, (counts.get(degraded) ?? 0) + 1);
  if (counts.size === 0) return '';
  return `answered without context: ${[...counts].map(([reason, count]) => `${count} (${reason})`).join(', ')}`;
}
