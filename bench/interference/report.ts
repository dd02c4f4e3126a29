/** `bench interference` as Markdown, with the winner of each figure, and its picture. */

import type { Artifact } from '../report/artifact.ts';
import { axes } from '../report/chart.ts';
import { figure, table } from '../report/markdown.ts';
import type { Report } from '../report/report.ts';
import type { InterferenceResult, InterferenceRun } from './measure.ts';

const FIGURES: readonly { name: string; of: (run: InterferenceRun) => number; better: 'lower' | 'higher' }[] = [
  { name: 'TPOT while quiet, p50 of the streams, ms', of: ({ quietTpot }) => quietTpot.p50, better: 'lower' },
  { name: 'TPOT while prompts arrive, p50 of the streams, ms', of: ({ busyTpot }) => busyTpot.p50, better: 'lower' },
  { name: 'ITL while quiet, p50, ms', of: ({ quiet }) => quiet.p50, better: 'lower' },
  { name: 'ITL while quiet, p99, ms', of: ({ quiet }) => quiet.p99, better: 'lower' },
  { name: 'ITL while prompts arrive, p50, ms', of: ({ busy }) => busy.p50, better: 'lower' },
  { name: 'ITL while prompts arrive, p99, ms', of: ({ busy }) => busy.p99, better: 'lower' },
  { name: 'slowdown of the p99', of: ({ quiet, busy }) => busy.p99 / quiet.p99, better: 'lower' },
  { name: 'streams while quiet, tokens/s', of: (run) => run.quietTokensPerSecond, better: 'higher' },
  { name: 'streams while prompts arrive, tokens/s', of: (run) => run.busyTokensPerSecond, better: 'higher' },
  { name: 'TTFT of the prompts, p50, ms', of: ({ ttft }) => ttft.p50, better: 'lower' },
  { name: 'TTFT of the prompts, p90, ms', of: ({ ttft }) => ttft.p90, better: 'lower' },
];

export function reportInterference({ result }: Artifact<InterferenceResult>): Report {
  const { options, runs, everyMs } = result;
  const rows = FIGURES.map(({ name, of, better }) => {
    const values = runs.map(of);
    const best = better === 'lower' ? Math.min(...values) : Math.max(...values);
    const winner = runs[values.indexOf(best)]?.deployment ?? '—';
    return [name, ...values.map(figure), winner];
  });
  const what =
    `${options.streams} streams generate; after ${options.windowMs / 1000} s, a prompt of ${options.promptTokens} tokens ` +
    `arrives every ${figure(everyMs)} ms for as long again (${runs.map(({ deployment, failed, arrived }) => `${deployment}: ${failed} of ${arrived} failed`).join('; ')}).`;
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

/** [seconds, ms]: the longest gap of any stream that ended in each stretch of time. */
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
