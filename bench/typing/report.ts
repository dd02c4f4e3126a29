/** `bench typing` as Markdown. */

import type { Artifact } from '../report/artifact.ts';
import { figure, percent, table } from '../report/markdown.ts';
import type { Report } from '../report/report.ts';
import type { TypingResult } from './measure.ts';

const HEAD = [
  ...[
    'deployment',
    'context',
    'order',
    'prefixes',
    'of prompts reused',
    'keystrokes',
    'requests',
    'first token in time',
    'answered in full',
    'cancelled',
  ],
  ...['failed', 'TTFT p50 / p90, ms', 'end to end p50, ms'],
];

export function reportTyping({ result }: Artifact<TypingResult>): Report {
  const rows = result.runs.map((run) => [
    run.deployment,
    run.context,
    run.promptOrder,
    run.reuse ? 'reused' : 'computed anew',
    percent(run.cachedShare),
    ...[run.keystrokes, run.requests].map(String),
    `${run.begun} (${percent(run.begun / run.requests)})`,
    `${run.answered} (${percent(run.answered / run.requests)})`,
    ...[run.cancelled, run.failed].map(String),
    `${figure(run.ttft.p50)} / ${figure(run.ttft.p90)}`,
    figure(run.e2e.p50),
  ]);
  const { pace, debounceMs, outputTokens } = result.options;
  const what =
    (pace === 'typed'
      ? `A request after each pause of ${debounceMs} ms; the next keystroke hangs up on it. TTFT counts from the end of ` +
        'the pause, of the requests that lived to see it.'
      : 'A request after each keystroke, and the next keystroke once it is answered.') +
    ` Up to ${outputTokens} tokens.`;
  return { markdown: [what, table(HEAD, rows, ['left', 'left', 'left', 'left'])].join('\n\n'), charts: [] };
}
