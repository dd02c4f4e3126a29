/** The report of `bench gpu`: a table for each part, and the paper's tables as `bench tables` reports them. */
import { figure, percent, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';
import { TABLES } from '../tables/report.ts';
import type { PartName } from './command.ts';
import type { Figure, GpuResult, PartResult } from './result.ts';

const TITLES: Readonly<Record<PartName, string>> = {
  device: 'The device',
  correct: 'Is it right?',
  speed: 'Prompts and steps',
  tables: 'The paper’s rows',
  handoff: 'KV caches from and to the device',
  memory: 'Memory',
  'two-workers': 'Two workers on one card',
};

export const GPU: Bench<GpuResult> = {
  name: 'gpu',
  title: 'A device',
  definitions: {
    bandwidth:
      'bytes read and written per second by a chain of additions on large matrices, by the runtime’s own kernel',
    arithmetic: 'floating-point operations per second of a chain of products of square matrices, by its own kernel',
    'first start':
      'ms of loading a bundle in a process of its own as a worker does, with the self-check and all that is ' +
      'compiled then',
    'the CPU’s part in the check':
      'ms in which the CPU computes what the device is compared with; later starts read it from the bundle’s folder',
    TTFT: 'ms of one prompt in chunks of a worker’s default, with greedy sampling, without a server',
    step:
      'ms of one decode step of that many sequences, without a server; greedy tokens are chosen from logits that ' +
      'are fetched, as for requests that sample, or where the logits are, as a worker does when all requests are greedy',
    'recorded step': 'the same with --graph-capture: the commands of a step are recorded once, and replayed',
    bound:
      'the least that it could take: for a prompt the operations of its matrices at the measured arithmetic, for a ' +
      'step the bytes of weights and KV at the measured bandwidth',
    'of the bound': 'bound / median',
    KL:
      'nats: the mean, over positions, of the Kullback-Leibler divergence of the device’s next-token distribution ' +
      'from the CPU’s',
    'hand-over':
      'bytes on the wire / time to pack them from the pool, or to put them into it, with CRC; without a network',
  },
  report: ({ result }) => ({ markdown: reportGpu(result), charts: chartsOf(result) }),
  headline: ({ provider, parts }) => {
    const done = parts.filter(({ status }) => status === 'done').length;
    const tokens = parts
      .flatMap(({ figures }) => figures)
      .find(({ what }) => what.startsWith('greedy tokens equal'))?.value;
    const equal = tokens ?? 'not measured';
    return `${provider}: ${done} of ${parts.length} parts measured whole; greedy tokens as on the CPU: ${equal}`;
  },
};

const reportGpu = ({ parts }: GpuResult): string => parts.map(reportPart).join('\n\n');

function reportPart({ part, status, reason, seconds, figures, pairs }: PartResult): string {
  const how = { done: 'measured whole', cut: `**cut short**: ${reason}`, failed: `**failed**: ${reason}` }[status];
  const sections = [`#### ${TITLES[part]}`, `${figure(seconds)} s, ${how}.`];
  if (figures.length > 0) sections.push(figureTable(figures));
  if (pairs) sections.push(tablesOf(pairs).markdown);
  return sections.join('\n\n');
}

function figureTable(figures: readonly Figure[]): string {
  const bounded = figures.some(({ bound }) => bound !== undefined);
  const head = ['of', 'figure', 'value', '', ...(bounded ? ['bound', 'of the bound'] : [])];
  const rows = figures.map(({ subject, what, value, unit, bound }) => {
    const written = typeof value === 'string' ? value : small(value);
    const beside = bound === undefined ? ['', ''] : [figure(bound), percent(bound / Number(value))];
    return [subject, what, written, unit, ...(bounded ? beside : [])];
  });
  return table(head, rows, ['left', 'left', 'right', 'left']);
}

/** A KL may be 4e-9, which three digits behind the point would hide. */
const small = (value: number) => (value !== 0 && Math.abs(value) < 0.01 ? value.toExponential(1) : figure(value));

const tablesOf = (pairs: NonNullable<PartResult['pairs']>): Report => TABLES.report({ result: { pairs } });

const chartsOf = ({ parts }: GpuResult): Report['charts'] =>
  parts.flatMap(({ pairs }) => (pairs ? tablesOf(pairs).charts : []));
