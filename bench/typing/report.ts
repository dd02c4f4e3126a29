/** The report of `bench typing`. */
import { figure, percent, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';
import type { TypingResult } from './measure.ts';

export const TYPING: Bench<TypingResult> = {
  name: 'typing',
  title: 'An editing session',
  definitions: {
    TTFT: 'ms to the first token from the end of the pause (or from the keystroke) before the request, if a token came',
    'end to end': 'ms from there to the last token, of requests that were answered in full',
    'in time': 'before the client hung up at the next keystroke',
    'of prompts reused': 'share of the prompt tokens of answered requests whose KV was in the cache',
  },
  report: ({ result }) => reportTyping(result),
  headline: ({ runs }) =>
    'requests whose first token came before the next keystroke, with reuse: ' +
    runs
      .filter(({ reuse, context }) => reuse && context === runs[0]?.context)
      .map((run) => `${percent(run.begun / run.requests)} (${run.deployment}, ${run.promptOrder})`)
      .join(', '),
};

const HEAD = [
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
  'failed',
  'TTFT p50 / p90, ms',
  'end to end p50, ms',
];

function reportTyping({ options, runs }: TypingResult): Report {
  const rows = runs.map((run) => [
    run.deployment,
    run.context,
    run.promptOrder,
    run.reuse ? 'reused' : 'computed anew',
    percent(run.cachedShare),
    String(run.keystrokes),
    String(run.requests),
    `${run.begun} (${percent(run.begun / run.requests)})`,
    `${run.answered} (${percent(run.answered / run.requests)})`,
    String(run.cancelled),
    String(run.failed),
    `${figure(run.ttft.p50)} / ${figure(run.ttft.p90)}`,
    figure(run.e2e.p50),
  ]);
  const { pace, debounceMs, outputTokens } = options;
  const sending =
    pace === 'typed'
      ? `A request is sent after each pause of ${debounceMs} ms, and the next keystroke hangs up on it. TTFT counts from the ` +
        'end of the pause, over the requests that received a token.'
      : 'A request is sent after each keystroke, and the next keystroke comes once it is answered.';
  const what = `${sending} Answers have up to ${outputTokens} tokens.`;
  return { markdown: [what, table(HEAD, rows, ['left', 'left', 'left', 'left'])].join('\n\n'), charts: [] };
}
