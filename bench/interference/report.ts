/** The report of `bench interference`: a table with the winner of each figure, and a chart of the longest waits. */
import { DEFINITIONS } from '../measure/latency.ts';
import { axes } from '../report/chart.ts';
import { figure, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';
import type { InterferenceResult, InterferenceRun } from './measure.ts';

const slowdown = ({ quiet, busy }: InterferenceRun) => busy.p99 / quiet.p99;

export const INTERFERENCE: Bench<InterferenceResult> = {
  name: 'interference',
  title: 'Interference: running streams while long prompts arrive',
  definitions: {
    'TTFT of the prompts': DEFINITIONS.ttft,
    TPOT: 'ms: (last - first token) / (tokens - 1) of the tokens that a stream put out in a window; p50 over the streams',
    ITL: 'ms between two tokens of a stream, pooled over the streams',
    quiet: 'the window before the prompts arrive; the busy window, in which they arrive, is as long',
    slowdown: 'p99 of the ITL in the busy window / p99 in the quiet window',
  },
  report: ({ result }) => reportInterference(result),
  headline: ({ runs }) =>
    'p99 of the time between tokens while prompts arrive, relative to the quiet time: ' +
    runs.map((run) => `${run.deployment} ${figure(slowdown(run))} ×`).join(', '),
};

const FIGURES: readonly { name: string; of: (run: InterferenceRun) => number; better: 'lower' | 'higher' }[] = [
  { name: 'TPOT while quiet, p50 of the streams, ms', of: ({ quietTpot }) => quietTpot.p50, better: 'lower' },
  { name: 'TPOT while prompts arrive, p50 of the streams, ms', of: ({ busyTpot }) => busyTpot.p50, better: 'lower' },
  { name: 'ITL while quiet, p50, ms', of: ({ quiet }) => quiet.p50, better: 'lower' },
  { name: 'ITL while quiet, p99, ms', of: ({ quiet }) => quiet.p99, better: 'lower' },
  { name: 'ITL while prompts arrive, p50, ms', of: ({ busy }) => busy.p50, better: 'lower' },
  { name: 'ITL while prompts arrive, p99, ms', of: ({ busy }) => busy.p99, better: 'lower' },
  { name: 'slowdown of the p99', of: slowdown, better: 'lower' },
  { name: 'streams while quiet, tokens/s', of: (run) => run.quietTokensPerSecond, better: 'higher' },
  { name: 'streams while prompts arrive, tokens/s', of: (run) => run.busyTokensPerSecond, better: 'higher' },
  { name: 'TTFT of the prompts, p50, ms', of: ({ ttft }) => ttft.p50, better: 'lower' },
  { name: 'TTFT of the prompts, p90, ms', of: ({ ttft }) => ttft.p90, better: 'lower' },
];

function reportInterference({ options, runs, everyMs }: InterferenceResult): Report {
  const rows = FIGURES.map(({ name, of, better }) => {
    const values = runs.map(of);
    const best = better === 'lower' ? Math.min(...values) : Math.max(...values);
    const winner = runs[values.indexOf(best)]?.deployment ?? '—';
    return [name, ...values.map(figure), winner];
  });
  const failures = runs.map(({ deployment, failed, arrived }) => `${deployment}: ${failed} of ${arrived} failed`);
  const what =
    `${options.streams} streams generate. After ${options.windowMs / 1000} s, a prompt of ${options.promptTokens} tokens ` +
    `arrives every ${figure(everyMs)} ms for as long again (${failures.join('; ')}).`;
  return {
    markdown: [what, table(['', ...runs.map(({ deployment }) => deployment), 'better'], rows)].join('\n\n'),
    charts: [
      {
        name: 'interference',
        option: axes('Longest wait of any stream for its next token', 'seconds', '', {
          yAxis: { type: 'log', name: 'longest wait, ms', nameLocation: 'middle', nameGap: 48 },
          series: runs.map(({ deployment, streamsMs }) => ({
            type: 'line' as const,
            name: deployment,
            symbol: 'none',
            markLine: {
              symbol: 'none',
              silent: true,
              label: { formatter: 'prompts arrive' },
              data: [{ xAxis: options.windowMs / 1000 }],
            },
            data: longestGaps(streamsMs, 2 * options.windowMs),
          })),
        }),
      },
    ],
  };
}

const BUCKETS = 160;

/** Points [s, ms]: for each stretch of time, the longest gap of any stream that ended in it. */
function longestGaps(streamsMs: readonly (readonly number[])[], endMs: number): [number, number][] {
  const longest = new Array<number>(BUCKETS).fill(0);
  for (const times of streamsMs) {
    for (const [i, at] of times.slice(1).entries()) {
      const bucket = Math.floor((at / endMs) * BUCKETS);
      const gap = at - times[i]!;
      if (bucket >= 0 && bucket < BUCKETS && gap > longest[bucket]!) longest[bucket] = gap;
    }
  }
  return longest.flatMap((gap, i) =>
    gap > 0 ? [[((i + 0.5) * endMs) / BUCKETS / 1000, Math.round(gap * 10) / 10]] : [],
  );
}
