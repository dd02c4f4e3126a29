/** The report of `bench speculation`: a table of speeds by trace, and one of what became of proposed tokens. */
import { median, quantile } from '../measure/statistics.ts';
import { figure, percent, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';
import { type IdentityResult, identicalOf } from './identity.ts';
import type { SpeculationPair } from './measure.ts';
import type { SpeculationResult } from './result.ts';
import type { SourceCounts } from './sources.ts';

const speedup = ({ plainTpotMs, speculativeTpotMs }: SpeculationPair) => plainTpotMs / speculativeTpotMs;

export const SPECULATION: Bench<SpeculationResult> = {
  name: 'speculation',
  title: 'Speculation: several tokens for one reading of the weights',
  definitions: {
    'TPOT, ms': '(last chunk - first chunk) / (output tokens - 1), the median over requests',
    speed: 'TPOT without speculation / TPOT with it, of one pair of requests; median and quartiles over pairs',
    same: 'pairs whose tokens and finish reason are the same with and without speculation',
    accepted: 'share of proposed tokens that the model gave',
    'same answers': 'requests whose choices are the same byte for byte: text, token ids, logprobs and finish reasons',
  },
  report: ({ result }) => reportSpeculation(result),
  headline: ({ traces, identity }) =>
    identity === undefined
      ? traces.map(({ trace, pairs }) => `${trace} ${figure(median(pairs.map(speedup)))} ×`).join(', ')
      : `${identicalOf(identity).same} of ${identicalOf(identity).requests} answers the same`,
};

function reportSpeculation({ traces, identity }: SpeculationResult): Report {
  if (identity !== undefined) return reportIdentity(identity);
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
  const head = ['trace', 'TPOT plain, ms', 'TPOT speculative, ms', 'speed', 'quartiles', 'same'];
  const sections = [table(head, speeds)];
  const sources = traces.flatMap(({ trace, sources: counts }) => sourceRows(counts).map((row) => [trace, ...row]));
  if (sources.length > 0) sections.push(table(['trace', ...SOURCE_HEAD], sources));
  return { markdown: sections.join('\n\n'), charts: [] };
}

const SOURCE_HEAD = ['source', 'runs', 'proposed', 'accepted'];

const sourceRows = (counts: readonly SourceCounts[]): string[][] =>
  counts.map(({ source, runs, proposed, accepted }) => [
    source,
    String(runs),
    String(proposed),
    percent(proposed === 0 ? undefined : accepted / proposed),
  ]);

function reportIdentity({ kinds, sources, differences }: IdentityResult): Report {
  const head = ['requests of', 'temperature', 'requests', 'choices', 'tokens', 'same answers'];
  const rows = kinds.map(({ kind, temperature, requests, choices, tokens, same }) =>
    [kind, temperature, requests, choices, tokens, `${same} of ${requests}`].map(String),
  );
  const sections = [table(head, rows), table(SOURCE_HEAD, sourceRows(sources))];
  if (differences.length > 0) {
    const named = differences.map(({ request, kind, temperature }) => `${request} (${kind}, ${temperature})`);
    sections.push(`The first requests whose answers differ: ${named.join(', ')}. The artifact has both answers.`);
  }
  return { markdown: sections.join('\n\n'), charts: [] };
}
