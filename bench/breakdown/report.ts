/** The report of `bench breakdown`: the overhead over the bare engine, and the stages as a table and as a waterfall. */
import { median, medianInterval } from '../measure/statistics.ts';
import { axes, type Chart, COLOURS } from '../report/chart.ts';
import { figure, percent, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';
import type { BreakdownRequest, BreakdownResult, BreakdownRun } from './measure.ts';

/** The goals of the project. */
const OVERHEAD_GOAL_MS = 15;
const EXPOSED_GOAL = { share: 0.03, promptTokens: 2010 };

export const BREAKDOWN: Bench<BreakdownResult> = {
  name: 'breakdown',
  title: 'Where the time of a request goes',
  definitions: {
    TTFT: 'ms from sending to the first token, as the client sees it; one request at a time',
    'bare engine prefill': 'ms of a prompt of as many tokens on the engine alone, right after the request',
    overhead: 'TTFT - bare engine prefill of the same pair; median',
    'handoff exposed': 'ms from the end of the last prompt chunk until all KV had arrived',
  },
  report: ({ result }) => reportBreakdown(result),
  headline({ runs }) {
    const shares = runs.map(exposedShareOf).filter(Number.isFinite);
    return `the KV hand-over takes at most ${percent(Math.max(...shares), 1)} of TTFT after the last prompt chunk`;
  },
};

const nameOf = ({ deployment, context }: BreakdownRun) => `${deployment}, ${context}`;

/** Median over the requests of a run that have the figure; NaN if none has. */
const middle = ({ requests }: BreakdownRun, pick: (request: BreakdownRequest) => number | undefined) =>
  median(requests.flatMap((request) => pick(request) ?? []));

const overheadOf = (run: BreakdownRun) => middle(run, ({ overheadMs }) => overheadMs);
const exposedShareOf = (run: BreakdownRun) => middle(run, ({ exposedMs, ttftMs }) => exposedMs / ttftMs);
const promptTokensOf = (run: BreakdownRun) => middle(run, ({ promptTokens }) => promptTokens);

function reportBreakdown({ runs, promptTokens, outputTokens }: BreakdownResult): Report {
  const what =
    `Medians in ms, one request at a time: ${promptTokens} tokens of code around the cursor, the context in addition, and ` +
    `${outputTokens} output tokens.`;
  const bare = runs.some(({ requests }) => requests.some(({ bareMs }) => bareMs !== undefined))
    ? 'After every request the bare engine computed a prompt of as many tokens, with the weights, threads and chunks of the ' +
      'worker. The overhead is the median of the differences within these pairs.'
    : 'The system was running before the bench, so there was no bare engine beside it.';
  return {
    markdown: [
      `${what} ${bare}`,
      overheadTable(runs),
      verdicts(runs).join('\n'),
      'Where the time goes:',
      stageTable(runs),
    ].join('\n\n'),
    charts: runs.length === 0 ? [] : [waterfall(runs)],
  };
}

function overheadTable(runs: readonly BreakdownRun[]): string {
  const head = [
    'deployment, context',
    'prompt tokens',
    'TTFT p50',
    'bare engine prefill p50',
    'overhead p50 (interval)',
    'handoff exposed p50',
    'of TTFT',
  ];
  const rows = runs.map((run) => [
    nameOf(run),
    figure(promptTokensOf(run)),
    figure(middle(run, ({ ttftMs }) => ttftMs)),
    figure(middle(run, ({ bareMs }) => bareMs)),
    overheadCell(run),
    figure(middle(run, ({ exposedMs }) => exposedMs)),
    percent(exposedShareOf(run), 1),
  ]);
  return table(head, rows);
}

/** The overhead with its interval, because the difference of two long times is noisy. */
function overheadCell(run: BreakdownRun): string {
  const { low, high } = medianInterval(run.requests.flatMap(({ overheadMs }) => overheadMs ?? []));
  return Number.isFinite(low) ? `${figure(overheadOf(run))} (${figure(low)} to ${figure(high)})` : '—';
}

/** One line per goal, with the worst of the runs to which it applies. */
function verdicts(runs: readonly BreakdownRun[]): string[] {
  const ofGoal = runs.filter((run) => promptTokensOf(run) === EXPOSED_GOAL.promptTokens);
  return [
    verdict(
      `Gateway, RPC and retrieval add at most ${OVERHEAD_GOAL_MS} ms p50 to the prefill of the bare engine`,
      runs,
      overheadOf,
      OVERHEAD_GOAL_MS,
      (ms) => `${figure(ms)} ms`,
    ),
    verdict(
      `The part of the KV hand-over after the last prompt chunk is at most ${percent(EXPOSED_GOAL.share)} of TTFT at ${EXPOSED_GOAL.promptTokens} prompt tokens`,
      ofGoal,
      exposedShareOf,
      EXPOSED_GOAL.share,
      (share) => percent(share, 1),
    ),
  ];
}

function verdict(
  goal: string,
  runs: readonly BreakdownRun[],
  of: (run: BreakdownRun) => number,
  most: number,
  shown: (value: number) => string,
): string {
  const measured = runs.filter((run) => Number.isFinite(of(run)));
  const [worst] = measured.toSorted((a, b) => of(b) - of(a));
  if (worst === undefined) return `- ${goal}: not measured`;
  const met = measured.filter((run) => of(run) <= most).length;
  const where = `${shown(of(worst))} in the worst run, ${nameOf(worst)}; reached in ${met} of ${measured.length}`;
  return `- ${goal}: ${met === measured.length ? 'met' : '**missed**'} (${where})`;
}

function stageTable(runs: readonly BreakdownRun[]): string {
  const stages = runs[0]?.requests[0]?.spans ?? [];
  const rows = stages.map(({ stage, meaning }, i) => [
    stage,
    meaning,
    ...runs.map((run) => figure(middle(run, ({ spans }) => spans[i]!.durationMs))),
  ]);
  const of = (pick: (request: BreakdownRequest) => number) => runs.map((run) => figure(middle(run, pick)));
  const totals = [
    ['**TTFT**', 'as the client sees it', ...of(({ ttftMs }) => ttftMs)],
    ['**end to end**', '', ...of(({ totalMs }) => totalMs)],
  ];
  return table(['stage', '', ...runs.map(nameOf)], [...rows, ...totals], ['left', 'left']);
}

/** One bar per run, divided into stages. It shows the request whose TTFT is the median of the run. */
function waterfall(runs: readonly BreakdownRun[]): Chart {
  const typical = runs.map(({ requests }) => {
    const sorted = requests.toSorted((a, b) => a.ttftMs - b.ttftMs);
    return sorted[Math.floor(sorted.length / 2)]!;
  });
  const stages = typical[0]!.spans.map(({ stage }) => stage);
  return {
    name: 'breakdown',
    height: 160 + 70 * runs.length,
    option: {
      ...axes('Where the time of a request goes', 'ms since the client sent it', ''),
      grid: { left: 230, right: 40, top: 50, bottom: 110 },
      yAxis: { type: 'category', data: runs.map(nameOf), inverse: true },
      series: stages.map((stage, i) => ({
        type: 'bar' as const,
        name: stage,
        stack: 'time',
        barWidth: 26,
        itemStyle: { color: [...COLOURS, '#999999', '#F0E442', '#7A5195', '#88CCAA', '#C9A66B'][i] },
        data: typical.map(({ spans }) => Math.round(1000 * Math.max(0, spans[i]!.durationMs)) / 1000),
      })),
    },
  };
}
