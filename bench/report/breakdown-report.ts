/** `bench breakdown` as a table of medians, and as a waterfall. */
import type { BreakdownResult, BreakdownRun } from '../breakdown.ts';
import { median } from '../measure/statistics.ts';
import type { Artifact } from './artifact.ts';
import { axes, type Chart, COLOURS } from './chart.ts';
import { figure, percent, table } from './markdown.ts';
import type { Report } from './report.ts';

const nameOf = ({ deployment, context }: BreakdownRun) => `${deployment}, ${context}`;

export function reportBreakdown({ result }: Artifact<BreakdownResult>): Report {
  const { runs, promptTokens, outputTokens } = result;
  const stages = runs[0]?.requests[0]?.spans ?? [];
  const rows = stages.map(({ stage, meaning }, i) => [
    stage,
    meaning,
    ...runs.map(({ requests }) => figure(median(requests.map(({ spans }) => spans[i]!.durationMs)))),
  ]);
  const of = (pick: (request: BreakdownRun['requests'][number]) => number) =>
    runs.map(({ requests }) => figure(median(requests.map(pick))));
  const totals = [
    ['**TTFT**', 'as the client sees it', ...of(({ ttftMs }) => ttftMs)],
    ['**overhead**', 'TTFT less the engine’s prefill', ...of(({ overheadMs }) => overheadMs)],
    ['', 'of TTFT', ...runs.map(({ requests }) => percent(median(requests.map((r) => r.overheadMs / r.ttftMs)), 1))],
    ['**end to end**', '', ...of(({ totalMs }) => totalMs)],
  ];
  const what = `Medians in ms, one request at a time: ${promptTokens} tokens of code around the cursor, the context on top, ${outputTokens} output tokens.`;
  return {
    markdown: [what, table(['stage', '', ...runs.map(nameOf)], [...rows, ...totals], ['left', 'left'])].join('\n\n'),
    charts: runs.length === 0 ? [] : [waterfall(runs)],
  };
}

/** One bar per run, a stretch per stage: of each run the request whose TTFT is the median one. */
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
        itemStyle: { color: [...COLOURS, '#999999', '#F0E442', '#7A5195', '#88CCAA'][i] },
        data: typical.map(({ spans }) => Math.round(1000 * Math.max(0, spans[i]!.durationMs)) / 1000),
      })),
    },
  };
}
