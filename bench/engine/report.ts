/** The reports of `bench engine` and `bench handoff`. */
import { DEFINITIONS } from '../measure/latency.ts';
import { bounds, figure, mebibytes, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';
import type { HandoffResult } from './handoff.ts';
import type { ProcessMemory } from './memory.ts';
import { type AgainstResult, type EngineResult, nameOf } from './result.ts';

export const ENGINE: Bench<EngineResult> = {
  name: 'engine',
  title: 'The bare engine',
  definitions: {
    'ms, median': 'ms of one prompt, or of one decode step, in a process of its own without a server',
    interval: DEFINITIONS.interval,
    'tokens/s': '1000 × tokens of the cell (prompt tokens, or sequences of the step) / median ms',
    load: 'ms until the model is loaded and has run once',
    resident: 'MiB in memory, with shared pages counted in full, once for each place where they are mapped',
    proportional: 'MiB in memory, with each shared page divided by the number of processes that share it',
    anonymous: 'MiB in memory that no file backs: a second process of the same model needs them again',
  },
  report: ({ result }) => reportEngine(result),
  headline({ cells }) {
    const longest = cells.findLast(({ phase }) => phase === 'prefill');
    const single = cells.find(({ phase }) => phase === 'decode');
    return [longest, single]
      .flatMap((cell) => (cell ? [`${nameOf(cell)}: ${figure(cell.tokensPerSecond)} tokens/s`] : []))
      .join('; ');
  },
};

function reportEngine({ loadMs, memory, verify, cells }: EngineResult): Report {
  const rows = cells.map((cell) => [
    nameOf(cell),
    figure(cell.medianMs),
    bounds(cell.interval),
    figure(cell.tokensPerSecond),
  ]);
  const held = (at: string, { rss, pss, anonymous }: ProcessMemory) => [at, ...[rss, pss, anonymous].map(mebibytes)];
  const sections = [
    table(['cell', 'ms, median', '95 % interval', 'tokens/s'], rows),
    table(
      ['memory, MiB', 'resident', 'proportional', 'anonymous'],
      [
        held('loaded', memory.loaded),
        held('after', memory.after),
        ...(verify ? [held('with verify runs', verify.memory)] : []),
      ],
    ),
    ...(verify ? [verifySentence(verify.runMs)] : []),
    `The model was loaded and warm after ${figure(loadMs)} ms.`,
  ];
  return { markdown: sections.join('\n\n'), charts: [] };
}

function verifySentence(runMs: NonNullable<EngineResult['verify']>['runMs']): string {
  const each = runMs.map(([tokens, ms]) => `${tokens} in ${figure(ms)}`);
  return `Tokens that one run gives, and ms: ${each.join(', ')}.`;
}

export const ENGINE_AGAINST: Bench<AgainstResult> = {
  name: 'engine-against',
  title: 'The engine beside an earlier one',
  definitions: {
    ratio: 'CPU time of all threads of this engine / that of the other checkout’s: the median over pairs, in turns',
    interval: DEFINITIONS.interval,
    quartiles: 'the ratios between which the middle half of the pairs lies',
  },
  report: ({ result: { cells } }) => {
    const ratio = (value: number) => value.toFixed(3);
    const rows = cells.map((cell) => [
      nameOf(cell),
      ratio(cell.ratio),
      bounds(cell.interval, ratio),
      `${ratio(cell.quartiles.low)} to ${ratio(cell.quartiles.high)}`,
      String(cell.ratios.length),
    ]);
    return { markdown: table(['cell', 'ratio', '95 % interval', 'quartiles', 'pairs'], rows), charts: [] };
  },
  headline: ({ cells }) => cells.map((cell) => `${nameOf(cell)}: ${cell.ratio.toFixed(3)}`).join('; '),
};

export const HANDOFF: Bench<HandoffResult> = {
  name: 'handoff',
  title: 'The KV cache between two processes',
  definitions: {
    ms: 'time from the request for the KV to its last checked byte',
    'GB/s of values': 'bytes of the float32 values / that time, whatever type they travel as',
    packing: "the sender's time to convert values to the wire type, with CRC",
    taking: "the receiver's time for CRC and for putting values in their places",
    CPU: 'CPU time of all threads of the process',
  },
  report: ({ result }) => reportHandoff(result),
  headline: ({ cells }) =>
    cells.map(({ type, gbPerSecond }) => `${figure(gbPerSecond)} GB/s of values as ${type}`).join(', '),
};

function reportHandoff({ cells }: HandoffResult): Report {
  const head = [
    'wire',
    'MB',
    'ms',
    'GB/s of values',
    'packing, ms',
    "sender's CPU, ms",
    'taking, ms',
    "receiver's CPU, ms",
  ];
  const rows = cells.map((cell) => [
    cell.type,
    figure(cell.bytes / 1e6),
    figure(cell.ms),
    figure(cell.gbPerSecond),
    figure(cell.packMs),
    figure(cell.senderCpuMs),
    figure(cell.takeMs),
    figure(cell.receiverCpuMs),
  ]);
  return { markdown: table(head, rows), charts: [] };
}
