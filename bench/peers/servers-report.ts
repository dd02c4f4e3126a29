/** The report of `bench peers`: a table of figures with their ratios, and one of the open load. */
import { DEFINITIONS, formatSlo, type Percentiles } from '../measure/latency.ts';
import { median, medianInterval } from '../measure/statistics.ts';
import { figure, percent, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';
import type { ServerCell, ServersResult } from './measure.ts';

export const SERVERS: Bench<ServersResult> = {
  name: 'peer-servers',
  title: 'Other servers beside ours',
  definitions: {
    'prompt of N': 'ms from sending a prompt that no server has seen to the first chunk that holds a choice',
    'keystroke after N': 'the same for a prompt of N tokens and one more, right after that of N tokens was answered',
    'N streams': `ms per token of N answers that are asked for at once, with prompts of 32 tokens: the median of their TPOT`,
    TPOT: DEFINITIONS.tpot,
    interval: `95 % if there are six rounds or more, else the range of all: ${DEFINITIONS.interval}`,
    'time against the first': 'time of this server / time of the first one in the same round: median and interval',
    attainment: DEFINITIONS.attainment,
    goodput: DEFINITIONS.goodput,
  },
  report: ({ result }) => reportServers(result),
  headline: ({ servers, cells }) => {
    const [reference] = servers;
    const ratio = ({ ms }: Server, i: number) => figure(median(ratiosOf(ms[i]!, reference!.ms[i]!)));
    const told = servers
      .filter(({ ours }) => !ours)
      .map((peer) => `${peer.name} ${cells.map((cell, i) => `${nameOf(cell)} ${ratio(peer, i)} ×`).join(', ')}`);
    return `time against ${reference!.name}: ${told.join('; ')}`;
  },
};

type Server = ServersResult['servers'][number];

function nameOf(cell: ServerCell): string {
  if (cell.kind === 'prompt') return `prompt of ${cell.tokens}`;
  if (cell.kind === 'keystroke') return `keystroke after ${cell.tokens}`;
  return cell.streams === 1 ? '1 stream' : `${cell.streams} streams`;
}

const ratiosOf = (ms: readonly number[], reference: readonly number[]) => ms.map((value, i) => value / reference[i]!);

function ranged(samples: readonly number[]): [middle: string, range: string] {
  const { low, high } = medianInterval(samples);
  return [figure(median(samples)), `${figure(low)}–${figure(high)}`];
}

function reportServers({ cells, load, servers }: ServersResult): Report {
  const [reference] = servers;
  const rows = cells.flatMap((cell, i) =>
    servers.map((server) => {
      const [ratio, range] = ranged(ratiosOf(server.ms[i]!, reference!.ms[i]!));
      const against = server === reference ? '' : `${ratio} × (${range})`;
      return [nameOf(cell), server.name, ...ranged(server.ms[i]!), against];
    }),
  );
  const sections = [
    'Every round measures each figure once on every server, one right after the other, in alternating order.',
    table(['figure', 'server', 'ms, median', 'interval', `time against ${reference!.name}`], rows, [
      'left',
      'left',
      'right',
      'right',
      'right',
    ]),
  ];
  if (load.rates.length > 0) sections.push(loadTable(load, servers));
  return { markdown: sections.join('\n\n'), charts: [] };
}

const LOAD_HEAD = [
  'requests/s',
  'server',
  'TTFT p50 / p90, ms',
  'TPOT p50 / p90, ms',
  'ok / failed',
  'attainment',
  'goodput, 1/s',
];
const two = ({ p50, p90 }: Percentiles) => `${figure(p50)} / ${figure(p90)}`;

function loadTable(
  { rates, slo, seconds, promptTokens, outputTokens }: ServersResult['load'],
  servers: readonly Server[],
) {
  const rows = rates.flatMap((rate, i) =>
    servers.map(({ name, loads }) => {
      const { ttft, tpot, ok, failed, attainment, goodput } = loads[i]!.summary;
      return [figure(rate), name, two(ttft), two(tpot), `${ok} / ${failed}`, percent(attainment), figure(goodput)];
    }),
  );
  const what =
    `The same requests for ${seconds} s at Poisson's times: ${promptTokens} prompt tokens, ${outputTokens} output tokens; ` +
    `objective: ${formatSlo(slo)}.`;
  return `${what}\n\n${table(LOAD_HEAD, rows, ['right', 'left'])}`;
}
