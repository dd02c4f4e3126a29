/** The report of `bench load`: a table of rates, and the curves over them. */
import { DEFINITIONS, formatSlo, type LoadSummary, type Percentiles } from '../measure/latency.ts';
import { axes } from '../report/chart.ts';
import { figure, percent, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';
import type { DeploymentLoad, LoadResult } from './measure.ts';

export const LOAD: Bench<LoadResult> = {
  name: 'load',
  title: 'Load: both modes and the rates they sustain',
  definitions: DEFINITIONS,
  report: ({ result }) => reportLoad(result),
  headline: ({ deployments, target, slo }) =>
    `highest rate at which ${percent(target)} of the requests met ${formatSlo(slo)}: ` +
    deployments.map(({ deployment, highestRate }) => `${deployment} ${figure(highestRate)}/s`).join(', '),
};

const HEAD = [
  'deployment',
  'rate, 1/s',
  'TTFT p50 / p90 / p99, ms',
  'TPOT, ms',
  'ITL, ms',
  'end to end, ms',
  'tokens/s',
  'ok / failed / cancelled',
  'attainment',
  'goodput, 1/s',
  'send lag p99, ms',
];

const three = ({ p50, p90, p99 }: Percentiles) => [p50, p90, p99].map(figure).join(' / ');

function reportLoad(result: LoadResult): Report {
  const { target, deployments } = result;
  const rows = deployments.flatMap(({ deployment, probes }) =>
    probes
      .toSorted((a, b) => a.rate - b.rate)
      .map(({ rate, result: { summary } }) => [
        deployment,
        figure(rate),
        three(summary.ttft),
        three(summary.tpot),
        three(summary.itl),
        three(summary.e2e),
        figure(summary.throughput),
        `${summary.ok} / ${summary.failed} / ${summary.cancelled}`,
        percent(summary.attainment),
        figure(summary.goodput),
        `${figure(summary.sendLag.p99)}${summary.degraded ? ' **degraded**' : ''}`,
      ]),
  );
  const best = deployments.map(({ deployment, highestRate }) => {
    const rate = highestRate === 0 ? 'none of the rates tried' : `${figure(highestRate)} requests/s`;
    return `- ${deployment}: **${rate}** is the highest rate tried at which ${percent(target)} of the requests met it`;
  });
  return {
    markdown: [whatOf(result), best.join('\n'), table(HEAD, rows)].join('\n\n'),
    charts: chartsOf(result),
  };
}

/** Describes the requests that were sent, and the objective that they had to meet. */
function whatOf({ workload, trace, slo }: LoadResult): string {
  const { seconds, requests, warmup, arrivals, promptTokens, outputTokens } = workload;
  if (trace) {
    const clipped = trace.clipped > 0 ? ` (${trace.clipped} prompts were cut to what a slot holds)` : '';
    return `The ${trace.requests} requests of ${trace.file}, sent at their own times${clipped}; objective: ${formatSlo(slo)}.`;
  }
  const context = workload.context === 'off' ? 'no context' : `${workload.context} context`;
  return (
    `Each run: ${seconds === undefined ? `${requests} requests` : `${seconds} s`} (the first ${warmup} requests warm it up), ` +
    `${arrivals} arrivals, ${promptTokens} prompt tokens with ${context}, ${outputTokens} output tokens; ` +
    `objective: ${formatSlo(slo)}.`
  );
}

function chartsOf({ slo, target, deployments }: LoadResult): Report['charts'] {
  return [
    {
      name: 'load',
      option: axes(`Requests within ${formatSlo(slo)}`, 'requests per second', 'attainment, %', {
        yAxis: { type: 'value', name: 'attainment, %', nameLocation: 'middle', nameGap: 48, min: 0, max: 100 },
        series: [
          ...deployments.map((load) => curve(load, ({ attainment = 0 }) => 100 * attainment)),
          {
            type: 'line' as const,
            name: percent(target),
            data: [],
            markLine: { symbol: 'none', silent: true, data: [{ yAxis: 100 * target }] },
          },
        ],
      }),
    },
    {
      name: 'load-ttft',
      option: axes('Time to first token under load (p90)', 'requests per second', 'TTFT p90, ms', {
        series: deployments.map((load) => curve(load, ({ ttft }) => ttft.p90)),
      }),
    },
  ];
}

function curve({ deployment, probes }: DeploymentLoad, of: (summary: LoadSummary) => number) {
  return {
    type: 'line' as const,
    name: deployment,
    symbolSize: 8,
    data: probes.toSorted((a, b) => a.rate - b.rate).map(({ rate, result }) => [rate, of(result.summary)]),
  };
}
