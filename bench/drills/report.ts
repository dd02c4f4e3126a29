/** The reports of `bench drills` and `bench soak`. */
import { figure, mebibytes, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';
import { ATTACKERS_NICE } from './hostile-rotation.ts';
import type { DrillsResult } from './judge.ts';
import type { Slope } from './slope.ts';
import type { SoakResult } from './soak.ts';
import { RSS_JUDGED_FROM_MS } from './trend.ts';
import { canCompare, JUDGED_FROM_COUNT, MOST_RISE, riseInWords } from './waits.ts';

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
  title: 'Soak: does anything grow, fail, or wait longer?',
  definitions: {
    'MiB/h, files/h':
      'slope of the floor (the lowest value of each sixth of the time) by least squares, ± two standard errors; the calm part and the third after it are left out, for RSS at least a quarter of an hour after it',
    'live heap': 'what lives in V8’s heap; its slope is that of what remains after collections',
    buffers: 'memory outside of V8’s heap that V8 counts, such as buffers',
    staged: 'KV of a prefill worker that no decode worker has taken yet: MiB at its peak, and bytes at the end',
    TTFT: 'ms from sending a request to its first token, over completions and keystrokes that ended well',
    'undisturbed, calm, attacked, struck':
      'requests before anything is struck or anybody attacks; while workers are killed and restarted, and nobody ' +
      'attacks; while workers are, and tenants attack; and those of both that waited while a worker ' +
      'was away, which are replayed or queue for fewer workers, and are not ' +
      'compared; two tenants attack at a time, so a request that is attacked counts in two rows of attacks',
    'in brackets':
      '95 % interval of the ratio of both p99 by 2,000 bootstrap resamples of the requests; the promise is judged by ' +
      'the ratio',
    'hostile tenants':
      `their clients run in a process of their own at niceness ${ATTACKERS_NICE}, as on a machine of their own: ` +
      'they have the CPU that nobody else wants',
  },
  report: ({ result }) => reportSoak(result),
  headline: ({ minutes, sent, lostTokens, doubledTokens, waits, broken }) =>
    `${figure(minutes)} minutes, ${sent} requests: ${lostTokens} tokens lost, ${doubledTokens} doubled, ` +
    (waits ? `TTFT p99 ${riseInWords(waits)} times as long beside attackers, ` : '') +
    (broken === '' ? 'nothing grows' : broken),
};

function reportSoak(result: SoakResult): Report {
  const { minutes, endedEarly, sent, ok, left, failed, lostTokens, doubledTokens, restarts, kills } = result;
  const short = result.trends.some(({ judged }) => judged === false);
  const sections = [
    `${figure(minutes)} minutes${endedEarly ? ' (ended early)' : ''}: ${sent} requests, ${ok} ok, ${left} left by their ` +
      `clients, failed ${counts(failed)}; ${lostTokens} tokens lost, ${doubledTokens} doubled; ${restarts} restarts, ${kills} kills.`,
    [`The requests were: ${mixOf(result.mix)}.`, ...honestOf(result)].join(' '),
    ...waitsOf(result),
    trendTable(result.trends),
    result.broken === '' ? 'Nothing is lost or left behind.' : `Not as promised: ${result.broken}.`,
    ...(short
      ? [
          `Resident memory is judged only in runs with at least ${RSS_JUDGED_FROM_MS / 60_000} minutes under full load: ` +
            'before that, malloc still fills.',
        ]
      : []),
  ];
  return { markdown: sections.join('\n\n'), charts: [] };
}

/** Artifacts that were made before the rate was derived do not say how. */
function honestOf({ honest }: Partial<SoakResult>): string[] {
  if (honest?.capacity === undefined) return [];
  const { rate, capacity } = honest;
  return [
    `The system computed ${figure(capacity)} output tokens/s when it was asked for more; ` +
      `at ${figure(rate)} requests/s the honest tenant asks for its share of that.`,
  ];
}

/** Artifacts that were made before attackers took part have no waits. */
function waitsOf({ waits, attackers, calmMinutes, undisturbedMinutes }: Partial<SoakResult>): string[] {
  if (!waits || !attackers || calmMinutes === undefined || undisturbedMinutes === undefined) return [];
  const { undisturbed, calm, attacked, struck, byAttack } = waits;
  const named = Object.entries({ undisturbed, calm, attacked, struck, ...byAttack });
  const rows = named.map(([name, { count, p50, p90, p99 }]) => {
    return [name in byAttack ? `attacked by ${name}` : name, String(count), figure(p50), figure(p90), figure(p99)];
  });
  const of = attackers.map(({ tenant, sent, tokens, refused }) => {
    return `${tenant} sent ${sent} measured requests and got ${tokens} tokens, refused: ${counts(refused)}`;
  });
  const verdict = canCompare(waits)
    ? `Beside attackers p99 was ${riseInWords(waits)} times that of ${figure(calmMinutes)} calm minutes; ` +
      `at most ${MOST_RISE} is promised. The first ${figure(undisturbedMinutes)} minutes were undisturbed.`
    : `There are too few requests to judge p99: ${JUDGED_FROM_COUNT} are needed on each side.`;
  const head = ['TTFT, ms', 'requests', 'p50', 'p90', 'p99'];
  return [table(head, rows), [verdict, ...of.map((text) => `${text}.`)].join(' ')];
}

function trendTable(trends: SoakResult['trends']): string {
  const slope = (of: Slope | undefined, shown: (value: number) => string) =>
    of ? `${shown(of.perUnit)} ± ${shown(2 * of.error)}` : '—';
  const rows = trends.map((trend) => [
    trend.name,
    mebibytes(trend.rssBytes.mean),
    slope(trend.rssBytes, mebibytes),
    slope(trend.heapBytes, mebibytes),
    slope(trend.externalBytes, mebibytes),
    figure(trend.openFiles.mean),
    slope(trend.openFiles, figure),
    mebibytes(trend.stagedPeakBytes),
    String(trend.stagedLeftBytes),
    trend.grows === '' ? (trend.judged === false ? 'too short to tell' : 'level') : `**${trend.grows}**`,
  ]);
  const head = [
    'Process',
    'RSS MiB',
    'MiB/h',
    'live heap MiB/h',
    'buffers MiB/h',
    'open files',
    'files/h',
    'staged KV MiB, peak',
    'left, bytes',
    'verdict',
  ];
  return table(head, rows, columns(head.length));
}

const mixOf = (mix: SoakResult['mix']) =>
  Object.entries(mix)
    .map(([kind, { sent, ok, left }]) => `${sent} ${kind} (${ok} ok, ${left} left or superseded)`)
    .join(', ');

/** Aligns the first and the last column left, and the others right. */
const columns = (count: number) =>
  Array.from({ length: count }, (_, i) => (i === 0 || i === count - 1 ? ('left' as const) : ('right' as const)));
