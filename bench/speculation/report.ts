/** The report of `bench speculation`: a table of speeds by trace, and one of what became of proposed tokens. */
import { median, quantile } from '../measure/statistics.ts';
import { figure, percent, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';
import type { SpeculationPair, SpeculationResult } from './measure.ts';

const speedup = ({ plainTpotMs, speculativeTpotMs }: SpeculationPair) => plainTpotMs / speculativeTpotMs;

export const SPECULATION: Bench<SpeculationResult> = {
  name: 'speculation',
  title: 'Speculation: several tokens for one reading of the weights',
  definitions: {
    'TPOT, ms': '(last chunk - first chunk) / (output tokens - 1), the median over requests',
    speed: 'TPOT without speculation / TPOT with it, of one pair of requests; median and quartiles over pairs',
    same: 'pairs whose tokens and finish reason are the same with and without speculation',
    accepted: 'share of proposed tokens that the model gave',
  },
  report: ({ result }) => reportSpeculation(result),
  headline: ({ traces }) =>
    traces.map(({ trace, pairs }) => `${trace} ${figure(median(pairs.map(speedup)))} ×`).join(', '),
};

function reportSpeculation({ traces }: SpeculationResult): Report {
  const speeds = traces.map(({ trace, pairs }) => {
    const speeds = pairs.map(speedup);
    return [
      trace,
      figure(median(pairs.map((pair) => pair.plainTpotMs))),
      figure(median(pairs.map((pair) => pair.speculativeTpotMs))),
      figure(median(speeds)),
      `${figure(quantile(speeds, 0.25))}–${figure(quantile(speeds, 0.75))}`,
      `${pairs.filter(({ same }) => same).length} of ${pairs.length}`,
    ];
  });
  const sources = traces.flatMap(({ trace, sources: counts }) =>
    counts.map(({ source, runs, proposed, accepted }) => [
      trace,
      source,
      String(runs),
      String(proposed),
      percent(proposed === 0 ? undefined : accepted / proposed),
    ]),
  );
  const head = ['trace', 'TPOT plain, ms', 'TPOT speculative, ms', 'speed', 'quartiles', 'same'];
  const sections = [table(head, speeds)];
  if (sources.length > 0) sections.push(table(['trace', 'source', 'runs', 'proposed', 'accepted'], sources));
  return { markdown: sections.join('\n\n'), charts: [] };
}
