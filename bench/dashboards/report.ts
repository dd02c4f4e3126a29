/** The report of `bench dashboards`: each dashboard as one picture, and the panels that stayed empty. */
import type { EChartsOption } from 'echarts';
import { type Chart, COLOURS } from '../report/chart.ts';
import { table } from '../report/markdown.ts';
import type { Bench } from '../report/report.ts';
import type { AnsweredDashboard, AnsweredPanel, DashboardsResult } from './panels.ts';

/** Why a panel may be empty in this run, by its title. */
const EMPTY: Readonly<Record<string, string>> = {
  'Certificates end in': 'the system of this bench has no certificates',
};

export const DASHBOARDS_BENCH: Bench<DashboardsResult> = {
  name: 'dashboards',
  title: 'The dashboards, answered',
  definitions: {
    answered: 'a panel for which Prometheus had at least one value of at least one of its queries',
    load: 'the mix of `bench soak` by one tenant, completions with context as text, and a tenant that is refused by its limit',
    losses:
      'at a tenth of the time rows are damaged, at a quarter a decode worker is killed, at two fifths a prefill worker; from ' +
      '55 % to 65 % Redis does not answer; at four fifths come 32 prompts at once',
  },
  report: ({ result }) => ({
    markdown: textOf(result),
    charts: result.dashboards.map((each) => chartOf(each, result)),
  }),
  headline({ dashboards }) {
    const panels = dashboards.flatMap((each) => each.panels);
    return `${panels.filter(isAnswered).length} of ${panels.length} panels have data`;
  },
};

const isAnswered = ({ lines }: AnsweredPanel) => lines.some(({ values }) => values.some((value) => value !== null));

function textOf({ dashboards }: DashboardsResult): string {
  const rows = dashboards.map(({ title, panels }) => {
    const empty = panels.filter((panel) => !isAnswered(panel));
    const why = empty.map(({ title }) => `${title} (${EMPTY[title] ?? 'nothing of it happened'})`).join(', ');
    return [title, `${panels.length}`, `${panels.length - empty.length}`, why || 'none'];
  });
  return table(['dashboard', 'panels', 'answered', 'empty'], rows, ['left', 'right', 'right', 'left']);
}

/** Two panels stand beside each other, as in Grafana. Sizes are in pixels of a picture that is 900 wide. */
const [COLUMNS, ROW, TOP, WIDTH, PLOT] = [2, 190, 50, 450, { left: 56, top: 26, width: 372, height: 104 }];
/** Lines of one panel whose names are shown. */
const NAMED = 6;

/** How an axis writes a unit of Grafana. */
const UNITS: Readonly<Record<string, string>> = {
  s: 's',
  bytes: 'bytes',
  Bps: 'bytes/s',
  reqps: 'requests/s',
  ops: '1/s',
};

function chartOf({ name, title, panels }: AnsweredDashboard, { stepSeconds }: DashboardsResult): Chart {
  const at = (i: number) => ({ left: WIDTH * (i % COLUMNS), top: TOP + ROW * Math.floor(i / COLUMNS) });
  const small = { fontSize: 9 };
  const key = (panel: number, legend: string) => `${panel}:${legend}`;
  const option: EChartsOption = {
    title: [
      { text: title, left: 'center', textStyle: { fontSize: 15 } },
      ...panels.map(({ title, unit, lines }, i) => ({
        text: UNITS[unit] ? `${title} (${UNITS[unit]})` : title,
        subtext: lines.length === 0 ? (EMPTY[title] ?? 'nothing of it happened') : '',
        left: at(i).left + PLOT.left,
        top: at(i).top,
        textStyle: { fontSize: 11 },
        subtextStyle: small,
      })),
    ],
    legend: panels.map(({ lines }, i) => ({
      left: at(i).left + PLOT.left,
      top: at(i).top + PLOT.top + PLOT.height + 18,
      width: PLOT.width,
      height: 30,
      itemWidth: 10,
      itemHeight: 6,
      itemGap: 14,
      textStyle: small,
      data: lines.slice(0, NAMED).map(({ legend }) => key(i, legend)),
      formatter: (full: string) => full.slice(full.indexOf(':') + 1),
    })),
    grid: panels.map((_, i) => ({
      left: at(i).left + PLOT.left,
      top: at(i).top + PLOT.top,
      width: PLOT.width,
      height: PLOT.height,
    })),
    xAxis: panels.map((_, i) => ({ type: 'value', gridIndex: i, axisLabel: { ...small, formatter: '{value} min' } })),
    yAxis: panels.map((_, i) => ({
      type: 'value',
      gridIndex: i,
      min: 0,
      splitNumber: 3,
      axisLabel: { ...small, formatter: short },
    })),
    series: panels.flatMap(({ lines }, i) =>
      lines.map(({ legend, values }, line) => ({
        type: 'line' as const,
        name: key(i, legend),
        xAxisIndex: i,
        yAxisIndex: i,
        showSymbol: false,
        color: COLOURS[line % COLOURS.length]!,
        lineStyle: { width: 1.2 },
        data: values.map((value, step): (number | null)[] => [(step * stepSeconds) / 60, value]),
      })),
    ),
  };
  return { name: `dashboards-${name}`, height: TOP + ROW * Math.ceil(panels.length / COLUMNS), option };
}

/** A figure of an axis: 1.5e9 is 1.5G. */
function short(value: number): string {
  const [scale, letter] =
    Math.abs(value) >= 1e9
      ? [1e9, 'G']
      : Math.abs(value) >= 1e6
        ? [1e6, 'M']
        : Math.abs(value) >= 1e4
          ? [1e3, 'k']
          : [1, ''];
  return `${Number((value / scale).toPrecision(3))}${letter}`;
}
