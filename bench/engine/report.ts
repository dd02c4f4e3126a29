/** `bench engine` and `bench handoff` as Markdown. */

import type { Artifact } from '../report/artifact.ts';
import { figure, table } from '../report/markdown.ts';
import type { Report } from '../report/report.ts';
import type { HandoffResult } from './handoff.ts';
import type { Memory } from './memory.ts';
import { type EngineResult, nameOf } from './result.ts';

const mebibytes = (bytes: number | undefined) => figure(bytes === undefined ? undefined : bytes / 2 ** 20);

export function reportEngine({ result: { loadMs, memory, cells } }: Artifact<EngineResult>): Report {
  const rows = cells.map((cell) => [
    nameOf(cell),
    figure(cell.medianMs),
    `${figure(cell.interval.low)}–${figure(cell.interval.high)}`,
    figure(cell.tokensPerSecond),
  ]);
  const held = (at: string, { rss, pss, anonymous }: Memory) => [at, ...[rss, pss, anonymous].map(mebibytes)];
  const sections = [
    table(['cell', 'ms, median', '95 % interval', 'tokens/s'], rows),
    table(
      ['memory, MiB', 'resident', 'proportional', 'anonymous'],
      [held('loaded', memory.loaded), held('after', memory.after)],
    ),
    `Loaded and warm in ${figure(loadMs)} ms.`,
  ];
  return { markdown: sections.join('\n\n'), charts: [] };
}

export function reportHandoff({ result: { cells } }: Artifact<HandoffResult>): Report {
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
    ...[cell.ms, cell.gbPerSecond, cell.packMs, cell.senderCpuMs, cell.takeMs, cell.receiverCpuMs].map(figure),
  ]);
  return { markdown: table(head, rows), charts: [] };
}
