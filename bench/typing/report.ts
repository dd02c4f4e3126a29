/** The report of `bench typing`. */
import { bounds, figure, percent, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';
import type { PredictedRun, RestartRun, TypingResult, WarmUpRun } from './measure.ts';

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
  headline: ({ runs, predicted, warmUps, restarts }) => {
    if (restarts) return headlineOfRestarts(restarts);
    if (warmUps) return headlineOfWarmUps(warmUps);
    return predicted ? headlineOfPredicted(predicted) : headlineOf(runs);
  },
};

const headlineOf = (runs: TypingResult['runs']) =>
  'requests whose first token came before the next keystroke, with reuse: ' +
  runs
    .filter(({ reuse, context }) => reuse && context === runs[0]?.context)
    .map((run) => `${percent(run.begun / run.requests)} (${run.deployment}, ${run.promptOrder})`)
    .join(', ');

/** The first variant has nothing, the last one everything. */
function headlineOfPredicted(runs: readonly PredictedRun[]): string {
  const [plain, whole] = [runs[0]!, runs.at(-1)!];
  const perAccepted = (run: PredictedRun) => figure(run.steps / run.accepted);
  return (
    `pauses answered in full by a scripted engine: ${percent(plain.answered / plain.pauses)}, and ` +
    `${percent(whole.answered / whole.pauses)} with stop_at, typed-through and linger; decode steps per accepted ` +
    `completion: ${perAccepted(plain)} and ${perAccepted(whole)}`
  );
}

const headlineOfWarmUps = (runs: readonly WarmUpRun[]) =>
  'time to the first token after a warm-up, over that after a completion: ' +
  runs.map(({ deployment, promptOrder, ratio }) => `${figure(ratio)} (${deployment}, ${promptOrder})`).join(', ');

const headlineOfRestarts = (runs: readonly RestartRun[]) =>
  'time to the first token after a worker was killed and started again, over that of one that went on: ' +
  runs.map(({ deployment, promptOrder, ratio }) => `${figure(ratio)} (${deployment}, ${promptOrder})`).join(', ');

const RESTART_HEAD = [
  'deployment',
  'context',
  'order',
  'trials',
  'failed',
  'TTFT without a restart, ms',
  'TTFT after kill and restart, ms',
  'ratio (95 % interval)',
  'TTFT if computed anew, ms',
  'tokens of the prompt',
  'of them in memory',
  'of them read from disk',
];

function reportRestarts({ options }: TypingResult, runs: readonly RestartRun[]): Report {
  const rows = runs.map((run) => [
    run.deployment,
    run.context,
    run.promptOrder,
    String(run.trials),
    String(run.failed),
    figure(run.warmMs),
    figure(run.restartedMs),
    `${figure(run.ratio)} (${bounds(run.ratioInterval)})`,
    figure(run.computedMs),
    figure(run.promptTokens),
    figure(run.warmCachedTokens),
    figure(run.restoredTokens),
  ]);
  const what =
    'Each trial types one key of the session three times: after the key before it, after that and a SIGKILL of the ' +
    'worker that had computed it, and after a SIGKILL where nobody had. It is the first prompt of the new process. ' +
    `KV lies on disk as ${options.kvDiskPrecision ?? 'exact'}. All figures are medians; that of the ratio is over the trials.`;
  return { markdown: [what, table(RESTART_HEAD, rows, ['left', 'left', 'left'])].join('\n\n'), charts: [] };
}

const WARM_UP_HEAD = [
  'deployment',
  'context',
  'order',
  'pairs',
  'failed',
  'TTFT after a warm-up, ms',
  'TTFT after a completion, ms',
  'ratio (95 % interval)',
  'tokens computed after a warm-up',
  'tokens computed after a completion',
];

function reportWarmUps(runs: readonly WarmUpRun[]): Report {
  const rows = runs.map((run) => [
    run.deployment,
    run.context,
    run.promptOrder,
    String(run.pairs),
    String(run.failed),
    figure(run.warmedMs),
    figure(run.completedMs),
    `${figure(run.ratio)} (${bounds(run.ratioInterval)})`,
    figure(run.warmedTokens),
    figure(run.completedTokens),
  ]);
  const what =
    'Each pair types one key of the session twice: after a request for no output, which computes the prompt before it ' +
    'and keeps it, and after a completion. All figures are medians; that of the ratio is over the pairs.';
  return { markdown: [what, table(WARM_UP_HEAD, rows, ['left', 'left', 'left'])].join('\n\n'), charts: [] };
}

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

const PREDICTED_HEAD = [
  'stop_at',
  'typed-through',
  'linger, ms',
  'pauses',
  'answered in full',
  'prompts computed',
  'decode steps',
  'accepted',
  'steps per accepted',
];

function reportPredicted({ options }: TypingResult, runs: readonly PredictedRun[]): Report {
  const rows = runs.map((run) => [
    run.stopAt ?? 'none',
    run.typedThrough,
    String(run.lingerMs),
    String(run.pauses),
    `${run.answered} (${percent(run.answered / run.pauses)})`,
    String(run.prompts),
    String(run.steps),
    String(run.accepted),
    figure(run.steps / run.accepted),
  ]);
  const what =
    'A scripted engine predicts what the session is going to type. A pause of ' +
    `${options.debounceMs} ms sends a request, and the next keystroke hangs up. Answers have up to ` +
    `${options.outputTokens} tokens. A completion is accepted if it came in full and is more than the end of text.`;
  return { markdown: [what, table(PREDICTED_HEAD, rows, ['left', 'left'])].join('\n\n'), charts: [] };
}

function reportTyping(result: TypingResult): Report {
  const { options, runs, predicted, warmUps, restarts } = result;
  if (warmUps) return reportWarmUps(warmUps);
  if (restarts) return reportRestarts(result, restarts);
  if (predicted) return reportPredicted(result, predicted);
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
