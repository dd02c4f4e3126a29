/** The report of `bench observability`: the cost within pairs, and one trace as a waterfall. */
import { median, medianInterval } from '../measure/statistics.ts';
import { axes, type Chart, COLOURS } from '../report/chart.ts';
import { change, figure, percent, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';
import type { ReceivedSpan } from './collector.ts';
import type { CpuOfRole, ObservabilityResult, ObservedPair } from './measure.ts';

/** The goal of the project: share of TTFT. */
const GOAL = 0.01;

export const OBSERVABILITY: Bench<ObservabilityResult> = {
  name: 'observability',
  title: 'What it costs to be observed',
  definitions: {
    on: 'every span is recorded and sent to a collector as JSON; every process is scraped as OpenMetrics every 5 s',
    off: 'neither; metrics are counted all the same',
    difference: 'median of the differences within pairs, of one request each, with its 95 % interval',
    'CPU time': 'of all threads of the processes of a role, user and system time, divided by the requests',
  },
  report: ({ result }) => reportObservability(result),
  headline({ pairs, cpu = [] }) {
    const { low, high } = medianInterval(ttftGaps(pairs));
    const interval = `${percent(low / offTtft(pairs), 1)} to ${percent(high / offTtft(pairs), 1)}`;
    const ttft = `traces and scrapes change TTFT by ${percent(shareOf(pairs), 1)} (median of pairs; interval ${interval})`;
    return [ttft, ...gatewayCpu(cpu)].join('; ');
  },
};

const offTtft = (pairs: readonly ObservedPair[]) => median(pairs.map(({ offTtftMs }) => offTtftMs));
const ttftGaps = (pairs: readonly ObservedPair[]) => pairs.map(({ onTtftMs, offTtftMs }) => onTtftMs - offTtftMs);
const shareOf = (pairs: readonly ObservedPair[]) => median(ttftGaps(pairs)) / offTtft(pairs);

function reportObservability({
  pairs,
  promptTokens,
  outputTokens,
  spansPerRequest,
  cpu = [],
  trace,
}: ObservabilityResult): Report {
  const tpots = pairs.flatMap(({ onTpotMs, offTpotMs }) =>
    onTpotMs === undefined || offTpotMs === undefined ? [] : [{ on: onTpotMs, off: offTpotMs }],
  );
  const row = (name: string, on: readonly number[], off: readonly number[]) => {
    const gaps = on.map((value, i) => value - off[i]!);
    const { low, high } = medianInterval(gaps);
    const base = median(off);
    return [
      name,
      figure(median(on)),
      figure(base),
      `${figure(median(gaps))} (${figure(low)} to ${figure(high)})`,
      `${percent(median(gaps) / base, 2)} (${percent(low / base, 2)} to ${percent(high / base, 2)})`,
    ];
  };
  return {
    markdown: [
      `${pairs.length} pairs of requests, ${promptTokens} prompt tokens and ${outputTokens} output tokens, one request at a ` +
        `time; ${figure(spansPerRequest)} spans per request.`,
      table(
        ['ms', 'on p50', 'off p50', 'difference p50 (interval)', 'of off'],
        [
          row(
            'TTFT',
            pairs.map(({ onTtftMs }) => onTtftMs),
            pairs.map(({ offTtftMs }) => offTtftMs),
          ),
          row(
            'TPOT',
            tpots.map(({ on }) => on),
            tpots.map(({ off }) => off),
          ),
        ],
      ),
      ...cpuOf(cpu),
      [`- Traces and scrapes cost at most ${percent(GOAL)} of TTFT: ${verdict(pairs)}`, ...gatewayCpu(cpu)].join('; '),
      'One completion whose decode worker was killed while it ran, as its trace shows it:',
    ].join('\n\n'),
    charts: trace.length === 0 ? [] : [waterfall(trace)],
  };
}

/** What does not show in TTFT as long as the gateway has CPU to spare. */
function gatewayCpu(cpu: readonly CpuOfRole[]): string[] {
  const gateway = cpu.find(({ role }) => role === 'gateway');
  if (gateway === undefined) return [];
  const { onMs, offMs } = gateway;
  const means = `${figure(onMs)} ms with them and ${figure(offMs)} without`;
  const note = `${change(1 - onMs / offMs)}; means of one run's requests, without an interval`;
  return [`the gateway's CPU time per request is ${means} (${note})`];
}

function cpuOf(cpu: readonly CpuOfRole[]): string[] {
  if (cpu.length === 0) return [];
  const rows = cpu.map(({ role, onMs, offMs }) => [role, figure(onMs), figure(offMs), figure(onMs - offMs)]);
  return [table(['CPU ms per request', 'on', 'off', 'difference'], rows)];
}

/** A median says nothing as long as its interval is wider than the goal. */
function verdict(pairs: readonly ObservedPair[]): string {
  const base = offTtft(pairs);
  const { low, high } = medianInterval(ttftGaps(pairs));
  const measured = `${percent(shareOf(pairs), 2)}, interval ${percent(low / base, 2)} to ${percent(high / base, 2)}`;
  if (high / base <= GOAL) return `met (${measured})`;
  return low / base > GOAL ? `**missed** (${measured})` : `not decided by this run (${measured}): ask for more --pairs`;
}

/** Spans below those that they belong to, each below its parent. */
function inOrder(trace: readonly ReceivedSpan[]): { readonly span: ReceivedSpan; readonly depth: number }[] {
  const ids = new Set(trace.map(({ spanId }) => spanId));
  const below = (parent: string | undefined, depth: number): { span: ReceivedSpan; depth: number }[] =>
    trace
      .filter(({ parentSpanId }) => (parent === undefined ? !ids.has(parentSpanId ?? '') : parentSpanId === parent))
      .toSorted((a, b) => a.startMs - b.startMs)
      .flatMap((span) => [{ span, depth }, ...below(span.spanId, depth + 1)]);
  return below(undefined, 0);
}

function waterfall(trace: readonly ReceivedSpan[]): Chart {
  const rows = inOrder(trace);
  const startMs = Math.min(...trace.map((span) => span.startMs));
  const services = [...new Set(trace.map(({ service }) => service))].sort();
  const ms = (value: number) => Math.round(1000 * value) / 1000;
  const events = rows.flatMap(({ span }, row) => span.events.map(({ name, atMs }) => [ms(atMs - startMs), row, name]));
  return {
    name: 'observability-trace',
    height: 150 + 26 * rows.length,
    option: {
      ...axes('One completion, whose decode worker was lost', 'ms since the gateway got the head of the request', ''),
      grid: { left: 250, right: 40, top: 50, bottom: 90 },
      yAxis: {
        type: 'category',
        inverse: true,
        data: rows.map(({ span, depth }) => `${'   '.repeat(depth)}${span.name}${span.error ? ' ✗' : ''}`),
        axisLabel: { fontSize: 11, align: 'left', margin: 235, interval: 0 },
      },
      series: [
        {
          type: 'bar' as const,
          stack: 'time',
          itemStyle: { color: 'transparent' },
          data: rows.map(({ span }) => ms(span.startMs - startMs)),
        },
        ...services.map((service, i) => ({
          type: 'bar' as const,
          name: service,
          stack: 'time',
          barWidth: 14,
          itemStyle: { color: COLOURS[i] },
          data: rows.map(({ span }) => (span.service === service ? ms(Math.max(span.endMs - span.startMs, 0)) : 0)),
        })),
        {
          type: 'scatter' as const,
          name: 'events',
          symbol: 'diamond',
          symbolSize: 7,
          itemStyle: { color: '#000000' },
          data: events.map(([x, y]) => [x!, y!]),
        },
      ],
    },
  };
}
