/** The report of `bench start`: how long a start takes, what computes in it, and what an idle system takes. */
import { median } from '../measure/statistics.ts';
import { figure, percent, table } from '../report/markdown.ts';
import type { Bench } from '../report/report.ts';
import type { DataFolder, StartedVersion, StartResult, StartRun } from './measure.ts';

export const START: Bench<StartResult> = {
  name: 'start',
  title: 'From npm start to a first completion, and idle',
  definitions: {
    'first completion':
      's from the command npm start, on a tree that is built, to the first token of a completion that asks for chunks of examples/shop',
    'with chunks':
      's from the command to the first token of such a completion that has them: an index that has just been made is loaded ' +
      'by the first request',
    serving: 's from the command to the line that says where the system serves',
    'new data folder': 'the bundle is made of the checkpoint that ships, and the repository is indexed',
    'kept data folder': 'the one that such a start has left, as at every later start',
    'CPU time':
      's of user and system time until the first completion with chunks, of all threads; ended: of processes that have ended by then ' +
      '(the check of the build, and what up has run once)',
    idle: 'share of one core that a process takes while nobody asks anything, from 30 s after a first completion on',
    wakeups: 'per second: how often a thread of the process has waited for something and gone on',
  },
  report: ({ result }) => ({ markdown: markdownOf(result), charts: [] }),
  headline: ({ versions: [own] }) => {
    if (own === undefined) return '—';
    const highest = Math.max(...own.idle.map(({ cores }) => cores));
    const idle = own.idle.length === 0 ? '' : `; idle at most ${percent(highest, 2)} of a core a process`;
    return `first completion after ${seconds(own, 'kept')} s, ${seconds(own, 'new')} s on an empty data folder${idle}`;
  },
};

const ofKind = ({ starts }: StartedVersion, kind: DataFolder) => starts.filter(({ data }) => data === kind);

const seconds = (version: StartedVersion, kind: DataFolder) =>
  figure(median(ofKind(version, kind).map(({ completionMs }) => completionMs)) / 1000);

function markdownOf({ idleSeconds, versions }: StartResult): string {
  const columns = versions.flatMap((version) =>
    (['kept', 'new'] as const).map((kind) => ({ version: version.version, kind, starts: ofKind(version, kind) })),
  );
  const head = ['', ...columns.map(({ version, kind }) => `${version}, ${kind} data folder`)];
  const names = [...new Set(columns.flatMap(({ starts }) => starts.flatMap(({ cpuMs }) => Object.keys(cpuMs))))];
  const row = (name: string, of: (start: StartRun) => number, spread = false) => [
    name,
    ...columns.map(({ starts }) => {
      const values = starts.map(of).map((ms) => ms / 1000);
      const range = spread ? ` (${figure(Math.min(...values))} to ${figure(Math.max(...values))})` : '';
      return values.length === 0 ? '—' : `${figure(median(values))}${range}`;
    }),
  ];
  const total = ({ cpuMs }: StartRun) => Object.values(cpuMs).reduce((sum, ms) => sum + ms, 0);
  const starts = table(head, [
    row('first completion, s', ({ completionMs }) => completionMs, true),
    row('with chunks, s', ({ contextMs }) => contextMs, true),
    row('serving, s', ({ servingMs }) => servingMs, true),
    row('CPU time, s', total, true),
    ...names.sort().map((name) => row(`CPU time of ${name}, s`, ({ cpuMs }) => cpuMs[name] ?? 0)),
  ]);
  const idle = versions.flatMap(({ version, idle }) =>
    idle.map(({ name, cores, wakeups }) => [version, name, percent(cores, 2), figure(wakeups)]),
  );
  const runs = `Medians, and lowest and highest, of ${columns[0]?.starts.length ?? 0} starts.`;
  if (idle.length === 0) return [runs, starts].join('\n\n');
  const watched = `Without requests, over ${idleSeconds} s:`;
  return [runs, starts, watched, table(['version', 'process', 'idle', 'wakeups'], idle, ['left', 'left'])].join('\n\n');
}
