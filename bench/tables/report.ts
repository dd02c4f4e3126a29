/** The report of `bench tables`: our rows beside the paper's, in the paper's order. */
import { DEFINITIONS } from '../measure/latency.ts';
import { median, medianInterval } from '../measure/statistics.ts';
import { axes, type Chart } from '../report/chart.ts';
import { bounds, change, figure, percent, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';
import { figuresOf, type Pair, reductionOf, type TablesResult, verdict } from './measure.ts';
import { LENGTHS, PAPER_MODELS, PAPER_TABLES, type PaperTable, paperRow, tokensCut } from './paper.ts';

export const TABLES: Bench<TablesResult> = {
  name: 'tables',
  title: 'The paper’s tables',
  definitions: {
    ttft: DEFINITIONS.ttft,
    tpot: DEFINITIONS.tpot,
    reduction: '1 - TTFT with soft tokens / TTFT with their text: the median over pairs measured one after the other',
    interval: `of the median reduction: ${DEFINITIONS.interval}`,
    'tokens cut': '1 - tokens of the prompt with soft tokens / tokens of the prompt with text',
    verdict:
      'yes if the median reduction is at least the share of tokens cut; uncertain if its interval contains that share, or covers the median with less than 90 %',
  },
  report: ({ result }) => reportTables(result),
  headline({ pairs }) {
    const reductions = allReductions(pairs);
    const shares = reductions.map(({ reduction }) => reduction);
    const reached = reductions.filter(({ reached }) => reached).length;
    return (
      `soft tokens save ${percent(Math.min(...shares))} to ${percent(Math.max(...shares))} of TTFT, at least the share of ` +
      `tokens cut in ${reached} of ${reductions.length} rows`
    );
  },
};

const headOf = ({ regime }: PaperTable) => [
  'tokens',
  'model',
  'TTFT, ms',
  '',
  '95 % interval',
  'at least the tokens cut',
  'paper: TTFT',
  ...(regime === 'line' ? ['TPOT, ms', 'paper: TPOT'] : []),
  'n',
];

/** The models that were measured, and then those of the paper. */
const modelsOf = (pairs: readonly Pair[]) => [...new Set([...pairs.map(({ model }) => model), ...PAPER_MODELS])];

const allReductions = (pairs: readonly Pair[]) =>
  PAPER_TABLES.flatMap((paper) => reductionsOf(paper, modelsOf(pairs), pairs));

function reportTables({ pairs }: TablesResult): Report {
  const models = modelsOf(pairs);
  const sections = PAPER_TABLES.map((paper) => {
    const rows = LENGTHS.flatMap((_, length) => models.map((model) => rowOf(paper, length, model, pairs)));
    return `#### Table ${paper.number}: ${paper.title}\n\n${table(headOf(paper), rows, ['left', 'left'])}`;
  });
  const reductions = allReductions(pairs);
  const reached = reductions.filter(({ reached }) => reached).length;
  const summary =
    `Median TTFT falls by at least the share of tokens cut in **${reached} of ${reductions.length}** rows that were measured. ` +
    'A verdict is uncertain if the interval of the paired reductions contains that share, or if there are fewer than five ' +
    'pairs.';
  return {
    markdown: [summary, table4(models, pairs), ...sections].join('\n\n'),
    charts: [chartOf(models, pairs)],
  };
}

/** The paper's summary: TTFT of line completion in both modes, side by side. */
function table4(models: readonly string[], pairs: readonly Pair[]): string {
  const tables = PAPER_TABLES.filter(({ regime }) => regime === 'line');
  const head = ['tokens', 'model', ...tables.flatMap(({ mode }) => [`${mode}: TTFT, ms`, 'paper'])];
  const rows = LENGTHS.flatMap((lengths, length) =>
    models.map((model) => [
      `${lengths.text} → ${lengths.soft}`,
      model,
      ...tables.flatMap((paper) => {
        const cell = cellOf(paper, length, model, pairs);
        const ours = cell.length > 0 ? ofPairs(cell, 'ttft') : 'not run';
        return [ours, beforeAfter(paperRow(paper, length, model)?.ttft)];
      }),
    ]),
  );
  return `#### Table 4: TTFT of a line in both modes\n\n${table(head, rows, ['left', 'left'])}`;
}

const cellOf = (paper: PaperTable, length: number, model: string, pairs: readonly Pair[]) =>
  pairs.filter(
    (pair) =>
      pair.mode === paper.mode && pair.regime === paper.regime && pair.length === length && pair.model === model,
  );

/** A share in whole percent, rounded as the paper rounds: 24.5 becomes 24. */
const wholePercent = (share: number) => `${Math.ceil(100 * share - 0.5)} %`;

function rowOf(paper: PaperTable, length: number, model: string, pairs: readonly Pair[]): string[] {
  const lengths = LENGTHS[length]!;
  const tokens = `${lengths.text} → ${lengths.soft} ↓ ${wholePercent(tokensCut(lengths))}`;
  const theirs = paperRow(paper, length, model);
  const line = paper.regime === 'line';
  const cell = cellOf(paper, length, model, pairs);
  if (cell.length === 0) {
    const tpot = line ? ['', beforeAfter(theirs?.tpot)] : [];
    return [tokens, model, 'not run', '', '', '', beforeAfter(theirs?.ttft), ...tpot, '0'];
  }
  const ttft = mediansOf(cell, 'ttft');
  const { reduction, interval } = reductionIn(cell, 'ttft');
  return [
    tokens,
    model,
    ttft ? `${figure(ttft[0])} → ${figure(ttft[1])}` : '—',
    change(reduction),
    bounds(interval, percent),
    verdict(interval, reduction, length),
    beforeAfter(theirs?.ttft),
    ...(line ? [ofPairs(cell, 'tpot'), beforeAfter(theirs?.tpot)] : []),
    String(cell.length),
  ];
}

/** The median of the paired reductions, with its interval. */
function reductionIn(cell: readonly Pair[], metric: 'ttft' | 'tpot') {
  const reductions = cell.flatMap((pair) => {
    const figures = figuresOf(pair, metric);
    return figures ? [reductionOf(figures.text, figures.soft)] : [];
  });
  return { reduction: median(reductions), interval: medianInterval(reductions) };
}

function mediansOf(cell: readonly Pair[], metric: 'ttft' | 'tpot'): [number, number] | undefined {
  const figures = cell.flatMap((pair) => figuresOf(pair, metric) ?? []);
  if (figures.length === 0) return undefined;
  return [median(figures.map(({ text }) => text)), median(figures.map(({ soft }) => soft))];
}

/**
 * The medians of both sides, and the median of the pairs' reductions, which differs from the reduction of the medians.
 */
function ofPairs(cell: readonly Pair[], metric: 'ttft' | 'tpot'): string {
  const medians = mediansOf(cell, metric);
  if (!medians) return '—';
  return `${medians.map(figure).join(' → ')} ${change(reductionIn(cell, metric).reduction)}`;
}

const beforeAfter = (pair: readonly [number, number] | undefined) =>
  pair ? `${figure(pair[0])} → ${figure(pair[1])} ${change(reductionOf(...pair))}` : '—';

function reductionsOf(paper: PaperTable, models: readonly string[], pairs: readonly Pair[]) {
  return LENGTHS.flatMap((lengths, length) =>
    models.flatMap((model) => {
      const cell = cellOf(paper, length, model, pairs);
      if (cell.length === 0) return [];
      const { reduction } = reductionIn(cell, 'ttft');
      return [{ paper, model, length, reduction, reached: reduction >= tokensCut(lengths) }];
    }),
  );
}

/** The reduction of TTFT beside the share of tokens cut. */
function chartOf(models: readonly string[], pairs: readonly Pair[]): Chart {
  const measured = models.filter((model) => pairs.some((pair) => pair.model === model));
  const labels = LENGTHS.map(({ text, soft }) => `${text} → ${soft}`);
  const bars = PAPER_TABLES.filter(({ regime }) => regime === 'line').flatMap((paper) =>
    measured.map((model) => ({
      type: 'bar' as const,
      name: `${model}, ${paper.mode}`,
      data: LENGTHS.map((_, length) => {
        const cell = cellOf(paper, length, model, pairs);
        return cell.length === 0 ? null : Math.round(1000 * reductionIn(cell, 'ttft').reduction) / 10;
      }),
    })),
  );
  const cut = LENGTHS.map((lengths) => Math.round(1000 * tokensCut(lengths)) / 10);
  return {
    name: 'tables',
    option: axes('TTFT saved by ten soft tokens instead of their text', '', 'TTFT saved, %', {
      xAxis: { type: 'category', data: labels },
      series: [
        ...bars,
        {
          type: 'line',
          name: 'share of tokens cut',
          data: cut,
          symbolSize: 9,
          lineStyle: { type: 'dashed' },
          color: '#000',
        },
      ],
    }),
  };
}
