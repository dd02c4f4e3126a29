/** Drills and soak as tables. */

import type { Artifact } from '../report/artifact.ts';
import { figure, table } from '../report/markdown.ts';
import type { Report } from '../report/report.ts';
import type { DrillsResult } from './judge.ts';
import { JUDGED_FROM_MS, type Slope } from './slope.ts';
import type { SoakResult } from './soak.ts';

const counts = (failed: Readonly<Record<string, number>>) =>
  Object.entries(failed)
    .map(([code, count]) => `${count} ${code}`)
    .join(', ') || '0';

export function reportDrills({ result: { drills } }: Pick<Artifact<DrillsResult>, 'result'>): Report {
  const head = ['Drill', 'times', 'sent', 'ok', 'left', 'failed', 'lost tokens', 'doubled tokens'];
  const rows = drills.map((result) => [
    result.name,
    ...[result.disturbances, result.sent, result.ok, result.left].map(String),
    counts(result.failed),
    ...[result.lostTokens, result.doubledTokens].map(String),
    figure(result.recoveryMs),
    figure(result.worstTtftMs),
    figure(result.longestGapMs),
    result.broken === '' ? result.note || 'as promised' : `**${result.broken}**`,
  ]);
  const sections = [
    table([...head, 'recovery ms', 'worst TTFT ms', 'longest gap ms', 'verdict'], rows, columns(head.length + 4)),
    'left: clients that hung up. lost, doubled: against the greedy answer of an undisturbed run. recovery: the longest time ' +
      'from a disturbance to the first token of a request sent after it. Worst TTFT, longest gap between two tokens: of ' +
      'streams that ended well.',
  ];
  return { markdown: sections.join('\n\n'), charts: [] };
}

export function reportSoak({ result }: Pick<Artifact<SoakResult>, 'result'>): Report {
  const { minutes, sent, ok, left, failed, lostTokens, doubledTokens, restarts, kills } = result;
  const mebibytes = ({ perUnit, error }: Slope) => `${figure(perUnit / 2 ** 20)} ± ${figure((2 * error) / 2 ** 20)}`;
  const short = minutes * 60_000 < JUDGED_FROM_MS;
  const rows = result.trends.map((trend) => [
    trend.name,
    figure(trend.rssBytes.mean / 2 ** 20),
    mebibytes(trend.rssBytes),
    mebibytes(trend.heapBytes),
    figure(trend.openFiles.mean),
    `${figure(trend.openFiles.perUnit)} ± ${figure(2 * trend.openFiles.error)}`,
    figure(trend.stagedPeakBytes / 2 ** 20),
    String(trend.stagedLeftBytes),
    trend.grows === '' ? (short ? 'too short to tell' : 'level') : `**${trend.grows}**`,
  ]);
  const head = [
    'Process',
    'RSS MiB',
    'MiB/h',
    'live heap MiB/h',
    'open files',
    'files/h',
    'staged KV MiB, peak',
    'left, bytes',
    'verdict',
  ];
  const lines = [
    `${minutes} minutes: ${sent} requests, ${ok} ok, ${left} left by their clients, failed ${counts(failed)}; ${lostTokens} tokens lost, ` +
      `${doubledTokens} doubled; ${restarts} restarts, ${kills} kills.`,
    '',
    `Of these: ${mixOf(result.mix)}.`,
    '',
    table(head, rows, columns(head.length)),
    '',
    result.broken === '' ? 'Nothing is lost or left behind.' : `Not as promised: ${result.broken}.`,
    ...(short ? [`Growth is judged from ${JUDGED_FROM_MS / 60_000} minutes on: until then heaps are filling.`] : []),
  ];
  return { markdown: lines.join('\n'), charts: [] };
}

const mixOf = (mix: NonNullable<SoakResult['mix']>) =>
  Object.entries(mix)
    .map(([kind, { sent, ok, left }]) => `${sent} ${kind} (${ok} ok, ${left} left or superseded)`)
    .join(', ');

/** All to the right but the first and the last. */
const columns = (count: number) =>
  Array.from({ length: count }, (_, i) => (i === 0 || i === count - 1 ? ('left' as const) : ('right' as const)));
