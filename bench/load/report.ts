/** `bench load` as Markdown, and its curves. */

import { formatSlo, type Percentiles } from '../measure/latency.ts';
import type { Artifact } from '../report/artifact.ts';
import { axes } from '../report/chart.ts';
import { figure, percent, table } from '../report/markdown.ts';
import type { Report } from '../report/report.ts';
import type { DeploymentLoad, LoadResult } from './measure.ts';

const HEAD = [
  ...['deployment', 'rate, 1/s', 'TTFT p50 / p90 / p99, ms', 'TPOT, ms', 'ITL, ms', 'end to end, ms', 'tokens/s'],
  ...['ok / failed / cancelled', 'attainment', 'goodput, 1/s', 'send lag p99, ms'],
];

const three = ({ p50, p90, p99 }: Percentiles) => [p50, p90, p99].map(figure).join(' / ');

export function reportLoad({ result }: Artifact<LoadResult>): Report {
  const { slo, target, workload, deployments } = result;
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
  const context = workload.context === 'off' ? 'no context' : `${workload.context} context`;
  const { trace } = result;
  const fromTrace =
    trace &&
    `The ${trace.requests} requests of ${trace.file} at their own times${trace.clipped > 0 ? ` (${trace.clipped} prompts cut to what a slot holds)` : ''}; objective: ${formatSlo(slo)}.`;
  const what =
    fromTrace ??
    `${workload.seconds === undefined ? `${workload.requests} requests` : `${workload.seconds} s`} per run ` +
      `(the first ${workload.warmup} requests warm it up), ${workload.arrivals} arrivals, ` +
      `${workload.promptTokens} prompt tokens with ${context}, ${workload.outputTokens} output tokens; objective: ${formatSlo(slo)}.`;
  const best = deployments.map(
    ({ deployment, highestRate }) =>
      `- ${deployment}: **${highestRate === 0 ? 'none of the rates tried' : `${figure(highestRate)} requests/s`}** is the highest rate tried at which ${percent(target)} of the requests met it`,
  );
  return {
    markdown: [what, best.join('\n'), table(HEAD, rows)].join('\n\n'),
    charts: [
      {
        name: 'load',
        option: axes(`Requests within ${formatSlo(slo)}`, 'requests per second', 'attainment, %', {
          yAxis: { type: 'value', name: 'attainment, %', nameLocation: 'middle', nameGap: 48, min: 0, max: 100 },
          series: [
            ...deployments.map((load) => curve(load, ({ attainment = 0 }) => 100 * attainment)),
            {
              type: 'line' as const,
              name: `${percent(target)}`,
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
    ],
  };
}

function curve({ deployment, probes }: DeploymentLoad, of: (summary: LoadSummaryOf) => number) {
  return {
    type: 'line' as const,
    name: deployment,
    symbolSize: 8,
    data: probes.toSorted((a, b) => a.rate - b.rate).map(({ rate, result }) => [rate, of(result.summary)]),
  };
}
type LoadSummaryOf = DeploymentLoad['probes'][number]['result']['summary'];
