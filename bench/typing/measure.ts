/**
 * `bench typing` replays an editing session, keystroke by keystroke. At the pace it was typed it does what the plug-in
 * of an editor does: it sends a request once the typist has paused for `debounceMs`, and hangs up at the next
 * keystroke. With a typist who waits for the answer after every keystroke, it shows what reuse saves, on a machine of
 * any speed.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import type { StopAt } from '../../services/gateway/request.ts';
import type { PromptOrder } from '../../services/lib/text/prompt-format.ts';
import { type ClientRecord, e2e, type Percentiles, percentiles, ttft } from '../measure/latency.ts';
import { type PlannedRequest, sendOne } from '../measure/load-client.ts';
import type { Interval } from '../measure/statistics.ts';
import type { ContextMode } from '../system/context.ts';
import type { TypingOptions } from './command.ts';
import type { Keystroke, Session } from './session.ts';

export interface ReplayOptions extends Pick<TypingOptions, 'pace' | 'debounceMs' | 'outputTokens' | 'timeoutMs'> {
  /** Name of the repository in the index. */
  readonly repo: string;
  /** How KV lies on disk; with `--pace restart` only. */
  readonly kvDiskPrecision?: TypingOptions['kvDiskPrecision'];
  /** Where answers end; left to the model where not given. */
  readonly stopAt?: StopAt | undefined;
}

export interface Variant {
  readonly promptOrder: PromptOrder;
  readonly context: ContextMode;
  /** Whether requests may reuse the KV that earlier ones computed. */
  readonly reuse: boolean;
}

export interface TypingRun extends Variant {
  readonly deployment: string;
  readonly keystrokes: number;
  /** Requests that were sent. */
  readonly requests: number;
  /** Requests that were answered in full before the next keystroke. */
  readonly answered: number;
  /** Requests that the client hung up on. */
  readonly cancelled: number;
  readonly failed: number;
  /** Requests whose first token, at least, came in time. */
  readonly begun: number;
  /** Share of the prompt tokens of answered requests whose KV was in the cache. */
  readonly cachedShare: number;
  readonly ttft: Percentiles;
  readonly e2e: Percentiles;
  readonly records: readonly ClientRecord[];
}

/** One way in which a gateway serves the session for a scripted engine. */
export interface PredictedVariant {
  readonly stopAt: 'statement' | undefined;
  readonly typedThrough: 'session' | 'off';
  readonly lingerMs: number;
}

export interface PredictedRun extends PredictedVariant {
  readonly pauses: number;
  /** Pauses that had all of their answer before the next keystroke. */
  readonly answered: number;
  /** Those whose answer was more than the end of text: the script is right, so the typist could accept each. */
  readonly accepted: number;
  readonly prompts: number;
  readonly steps: number;
}

/** Keystrokes after a warm-up, and after a completion: medians of times in ms and of computed tokens of the prompt. */
export interface WarmUpRun extends Omit<Variant, 'reuse'> {
  readonly deployment: string;
  /** Pairs of keystrokes both of which were answered. */
  readonly pairs: number;
  readonly failed: number;
  readonly warmedMs: number;
  readonly completedMs: number;
  /** Time after a warm-up over time after a completion, pair by pair. */
  readonly ratio: number;
  readonly ratioInterval: Interval;
  readonly warmedTokens: number;
  readonly completedTokens: number;
  readonly records: readonly { readonly warmed: ClientRecord; readonly completed: ClientRecord }[];
}

/**
 * Keystrokes whose worker went on, was killed and started again, or was killed and had never computed their prompt:
 * medians of times in ms and of tokens.
 */
export interface RestartRun extends Omit<Variant, 'reuse'> {
  readonly deployment: string;
  /** Trials of which all three keystrokes were answered. */
  readonly trials: number;
  readonly failed: number;
  readonly warmMs: number;
  readonly restartedMs: number;
  readonly computedMs: number;
  /** Time after a restart over time without one, trial by trial. */
  readonly ratio: number;
  readonly ratioInterval: Interval;
  readonly promptTokens: number;
  readonly warmCachedTokens: number;
  readonly restoredTokens: number;
  readonly records: readonly {
    readonly warm: ClientRecord;
    readonly restarted: ClientRecord;
    readonly computed: ClientRecord;
  }[];
}

export interface TypingResult {
  readonly model: string;
  readonly options: ReplayOptions;
  readonly runs: readonly TypingRun[];
  /** Runs of a scripted engine, which has no others. */
  readonly predicted?: readonly PredictedRun[];
  /** Runs with `--pace warm-up`, which have no others. */
  readonly warmUps?: readonly WarmUpRun[];
  /** Runs with `--pace restart`, which have no others. */
  readonly restarts?: readonly RestartRun[];
}

type Ask = (request: Omit<PlannedRequest, 'body'>, key: Keystroke, index: number) => Promise<ClientRecord>;

export async function measureTyping(
  url: string,
  deployment: string,
  { path, keystrokes }: Session,
  options: ReplayOptions & Variant,
): Promise<TypingRun> {
  const { repo, pace, context, promptOrder, reuse, outputTokens, timeoutMs } = options;
  const startMs = performance.now();
  const salt = randomUUID(); // so that no run reuses what another one computed
  const ask: Ask = (request, { before, after }, index) => {
    const body = {
      prompt: before,
      suffix: after,
      max_tokens: outputTokens,
      temperature: 0,
      ...(context !== 'off' && { rag: { repo, path, mode: context } }),
      // The answers of one editor: without a repository, nothing else says that they belong together.
      ...(context === 'off' && { session: salt }),
      ...(options.stopAt && { stop_at: options.stopAt, language: 'python' }),
      cache_salt: reuse ? salt : randomUUID(),
    };
    return sendOne(url, { ...request, body }, index, startMs, { timeoutMs });
  };
  const records =
    pace === 'answered'
      ? await askInTurns(ask, keystrokes, startMs)
      : await askAfterPauses(ask, keystrokes, startMs, options.debounceMs);
  const ok = records.filter(({ outcome }) => outcome === 'ok');
  const total = (of: (record: ClientRecord) => number) => ok.reduce((sum, record) => sum + of(record), 0);
  const begun = records.filter(({ chunksMs }) => chunksMs.length > 0);
  return {
    deployment,
    context,
    promptOrder,
    reuse,
    keystrokes: keystrokes.length,
    requests: records.length,
    answered: ok.length,
    cancelled: records.filter(({ outcome }) => outcome === 'cancelled').length,
    failed: records.filter(({ outcome }) => outcome === 'failed').length,
    begun: begun.length,
    cachedShare: total(({ cachedTokens }) => cachedTokens) / total(({ promptTokens }) => promptTokens),
    ttft: percentiles(begun.map(ttft)),
    e2e: percentiles(ok.filter(({ chunksMs }) => chunksMs.length > 0).map(e2e)),
    records,
  };
}

/** Sends a request for each keystroke when the one before it has been answered. */
async function askInTurns(ask: Ask, keystrokes: readonly Keystroke[], startMs: number): Promise<ClientRecord[]> {
  const records: ClientRecord[] = [];
  for (const [i, key] of keystrokes.entries()) records.push(await ask({ atMs: performance.now() - startMs }, key, i));
  return records;
}

/** Sends a request after each pause of the typist, and hangs up on it at the next keystroke. */
async function askAfterPauses(
  ask: Ask,
  keystrokes: readonly Keystroke[],
  startMs: number,
  debounceMs: number,
): Promise<ClientRecord[]> {
  const pauses = keystrokes.flatMap((key, i) => {
    const untilNext = (keystrokes[i + 1]?.atMs ?? Number.POSITIVE_INFINITY) - key.atMs;
    return untilNext < debounceMs ? [] : [{ key, untilNext }];
  });
  const asked = pauses.map(async ({ key, untilNext }, i) => {
    const atMs = key.atMs + debounceMs;
    await delay(Math.max(0, atMs - (performance.now() - startMs)));
    const cancelAfterMs = Number.isFinite(untilNext) ? untilNext - debounceMs : undefined;
    return ask({ atMs, ...(cancelAfterMs !== undefined && { cancelAfterMs }) }, key, i);
  });
  return Promise.all(asked);
}
