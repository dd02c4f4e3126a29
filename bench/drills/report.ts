/** The reports of `bench drills` and `bench soak`. */
import { figure, mebibytes, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';
import type { DrillsResult } from './judge.ts';
import { JUDGED_FROM_MS, type Slope } from './slope.ts';
import type { SoakResult } from './soak.ts';

export const DRILLS_BENCH: Bench<DrillsResult> = {
  name: 'drills',
  title: 'Drills: what happens when things break',
  definitions: {
    left: 'clients that hung up',
    lost: 'tokens of the greedy answer of an undisturbed run that did not come',
    doubled: 'tokens that came and are not those of that answer at their place',
    recovery: 'the longest time in ms from a disturbance to the first token of a request sent after it',
    'worst TTFT, longest gap': 'ms, over the streams that ended well',
  },
  report: ({ result }) => reportDrills(result),
  headline({ drills }) {
    const made = drills.filter(({ sent }) => sent > 0);
    return `${made.filter(({ broken }) => broken === '').length} of ${made.length} drills ended as promised`;
  },
};

const counts = (failed: Readonly<Record<string, number>>) =>
  Object.entries(failed)
    .map(([code, count]) => `${count} ${code}`)
    .join(', ') || '0';

function reportDrills({ drills }: DrillsResult): Report {
  const head = [
    'Drill',
    'times',
    'sent',
    'ok',
    'left',
    'failed',
    'lost tokens',
    'doubled tokens',
    'recovery ms',
    'worst TTFT ms',
    'longest gap ms',
    'verdict',
  ];
  const rows = drills.map((result) => [
    result.name,
    String(result.disturbances),
    String(result.sent),
    String(result.ok),
    String(result.left),
    counts(result.failed),
    String(result.lostTokens),
    String(result.doubledTokens),
    figure(result.recoveryMs),
    figure(result.worstTtftMs),
    figure(result.longestGapMs),
    result.broken === '' ? result.note || 'as promised' : `**${result.broken}**`,
  ]);
  const sections = [
    table(head, rows, columns(head.length)),
    '“Left” counts clients that hung up. “Lost” and “doubled” compare tokens with the greedy answer of an undisturbed run. ' +
      '“Recovery” is the longest time from a disturbance to the first token of a request sent after it. Worst TTFT and ' +
      'longest gap (between two tokens) are those of the streams that ended well.',
  ];
  return { markdown: sections.join('\n\n'), charts: [] };
}

export const SOAK_BENCH: Bench<SoakResult> = {
  name: 'soak',
  title: 'Soak: does anything grow?',
  definitions: {
    'MiB/h, files/h':
      'slope of the floor (the lowest value of each sixth of the time) by least squares, ± two standard errors',
    'live heap': 'what lives in V8’s heap; its slope is that of what remains after collections',
    staged: 'KV of a prefill worker that no decode worker has taken yet: MiB at its peak, and bytes at the end',
  },
  report: ({ result }) => reportSoak(result),
  headline: ({ minutes, sent, lostTokens, doubledTokens, broken }) =>
    `${minutes} minutes, ${sent} requests: ${lostTokens} tokens lost, ${doubledTokens} doubled, ` +
    (broken === '' ? 'nothing grows' : broken),
};

function reportSoak(result: SoakResult): Report {
  const { minutes, sent, ok, left, failed, lostTokens, doubledTokens, restarts, kills } = result;
  const short = minutes * 60_000 < JUDGED_FROM_MS;
  const slope = ({ perUnit, error }: Slope, shown: (value: number) => string) =>
    `${shown(perUnit)} ± ${shown(2 * error)}`;
  const rows = result.trends.map((trend) => [
    trend.name,
    mebibytes(trend.rssBytes.mean),
    slope(trend.rssBytes, mebibytes),
    slope(trend.heapBytes, mebibytes),
    figure(trend.openFiles.mean),
    slope(trend.openFiles, figure),
    mebibytes(trend.stagedPeakBytes),
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
  const sections = [
    `${minutes} minutes: ${sent} requests, ${ok} ok, ${left} left by their clients, failed ${counts(failed)}; ` +
      `${lostTokens} tokens lost, ${doubledTokens} doubled; ${restarts} restarts, ${kills} kills.`,
    `The requests were: ${mixOf(result.mix)}.`,
    table(head, rows, columns(head.length)),
    result.broken === '' ? 'Nothing is lost or left behind.' : `Not as promised: ${result.broken}.`,
    ...(short
      ? [`Growth is judged only in runs of at least ${JUDGED_FROM_MS / 60_000} minutes: before that, heaps still fill.`]
      : []),
  ];
  return { markdown: sections.join('\n\n'), charts: [] };
}

const mixOf = (mix: SoakResult['mix']) =>
  Object.entries(mix)
    .map(([kind, { sent, ok, left }]) => `${sent} ${kind} (${ok} ok, ${left} left or superseded)`)
    .join(', ');

/** Aligns the first and the last column left, and the others right. */
const columns = (count: number) =>
  Array.from({ length: count }, (_, i) => (i === 0 || i === count - 1 ? ('left' as const) : ('right' as const)));
