/**
 * `bench interference`: what disaggregation is for. Some streams generate; after a quiet window, long prompts keep
 * arriving at an even pace. How much longer do the streams now wait for each token, and how long do the prompts wait?
 */
import { setTimeout as delay } from 'node:timers/promises';
import { streamCompletion } from '../../services/client.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { type Percentiles, percentiles, type RequestRecord, ttft } from '../measure/latency.ts';
import { runOpenLoop, sendOne } from '../measure/load-client.ts';
import { median } from '../measure/statistics.ts';
import type { PromptMaker } from '../system/prompts.ts';

export interface InterferenceOptions {
  readonly streams: number;
  /** Of the prompts that the streams begin with. */
  readonly streamPromptTokens: number;
  /** Of the prompts that arrive. */
  readonly promptTokens: number;
  readonly outputTokens: number;
  /** Of the quiet and of the busy window. */
  readonly windowMs: number;
  /** Tokens of a slot. */
  readonly capacity: number;
  readonly timeoutMs: number;
}

export interface InterferenceRun {
  readonly deployment: string;
  /** ms between two tokens of a stream. */
  readonly quiet: Percentiles;
  readonly busy: Percentiles;
  /** Tokens per second, of all streams together. */
  readonly quietTokensPerSecond: number;
  readonly busyTokensPerSecond: number;
  /** Of the prompts that arrived: ms. */
  readonly ttft: Percentiles;
  readonly arrived: number;
  readonly failed: number;
  /** ms per token, by stream. */
  readonly quietTpot: Percentiles;
  readonly busyTpot: Percentiles;
  /** Times of tokens, by stream; ms from the start of the quiet window. */
  readonly streamsMs: readonly (readonly number[])[];
  readonly records: readonly RequestRecord[];
}

export interface InterferenceResult {
  readonly model: string;
  readonly options: InterferenceOptions;
  readonly everyMs: number;
  readonly runs: readonly InterferenceRun[];
}

/** How long one such prompt takes on an idle system: ms, median of three. */
export async function idleTtft(
  url: string,
  prompts: PromptMaker,
  options: Omit<InterferenceOptions, 'windowMs'>,
): Promise<number> {
  const startMs = performance.now();
  const figures: number[] = [];
  for (let i = 0; i < 4; i++) {
    const atMs = performance.now() - startMs;
    const record = await sendOne(url, { atMs, body: arriving(prompts, options, i) }, i, startMs, options);
    if (record.outcome !== 'ok')
      throw new ServingError('internal', `a prompt on an idle system failed: ${record.code}`);
    if (i > 0) figures.push(ttft(record)); // the first one warms up
  }
  return median(figures);
}

export async function measureInterference(
  url: string,
  deployment: string,
  prompts: PromptMaker,
  options: InterferenceOptions,
  everyMs: number,
): Promise<InterferenceRun> {
  const { streams, windowMs, timeoutMs } = options;
  const end = new AbortController();
  const stamps: number[][][] = Array.from({ length: streams }, () => []);
  const running = stamps.map((lives, i) => stream(url, prompts, options, i, lives, end.signal));
  // A stream that fails must not leave us waiting.
  const failure = Promise.all(running).then(() => new Promise<never>(() => {}));
  try {
    await Promise.race([failure, allStarted(stamps, timeoutMs)]);
    const startMs = performance.now();
    await Promise.race([failure, delay(windowMs)]);
    const count = Math.max(1, Math.floor(windowMs / everyMs));
    const plan = Array.from({ length: count }, (_, i) => ({
      atMs: i * everyMs,
      body: arriving(prompts, options, 100 + i),
    }));
    const [records] = await Promise.all([
      runOpenLoop(url, plan, { timeoutMs }),
      Promise.race([failure, delay(windowMs)]),
    ]);
    return summary(
      deployment,
      stamps.flat().map((times) => times.map((at) => at - startMs)),
      records,
      windowMs,
    );
  } finally {
    end.abort(ENDED);
    await Promise.allSettled(running);
  }
}

const ENDED = new Error('the measurement has ended');

/** One stream, and its successors: each ends when its slot is full. `lives` are the times of their tokens. */
async function stream(
  url: string,
  prompts: PromptMaker,
  options: InterferenceOptions,
  index: number,
  lives: number[][],
  signal: AbortSignal,
): Promise<void> {
  const { streams, streamPromptTokens: tokens, capacity } = options;
  for (let life = 0; ; life++) {
    const body = {
      ...prompts.make(1000 + index + life * streams, { tokens, context: 'off', contextTokens: 0 }),
      max_tokens: capacity - tokens - 1,
      temperature: 0,
      ignore_eos: true,
    };
    const times: number[] = [];
    lives.push(times);
    try {
      await streamCompletion(url, body, signal, { onChunk: (at) => times.push(at) });
    } catch (error) {
      if (signal.aborted) return;
      throw error;
    }
  }
}

async function allStarted(stamps: readonly (readonly (readonly number[])[])[], timeoutMs: number): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!stamps.every(([first]) => (first?.length ?? 0) > 1)) {
    if (performance.now() > deadline) throw new ServingError('deadline_exceeded', 'the streams did not begin in time');
    await delay(20);
  }
}

const arriving = (
  prompts: PromptMaker,
  { promptTokens, outputTokens }: Pick<InterferenceOptions, 'promptTokens' | 'outputTokens'>,
  index: number,
) => ({
  ...prompts.make(index, { tokens: promptTokens, context: 'off', contextTokens: 0 }),
  max_tokens: outputTokens,
  temperature: 0,
  ignore_eos: true,
});

function summary(
  deployment: string,
  streamsMs: readonly (readonly number[])[],
  records: readonly RequestRecord[],
  windowMs: number,
): InterferenceRun {
  const window = (from: number, to: number) =>
    streamsMs.flatMap((times) => times.slice(1).flatMap((at, i) => (at >= from && at < to ? [at - times[i]!] : [])));
  /** (last token - first token) / (tokens - 1), of what each stream put out meanwhile. */
  const tpots = (from: number, to: number) =>
    streamsMs.flatMap((times) => {
      const within = times.filter((at) => at >= from && at < to);
      return within.length < 2 ? [] : [(within.at(-1)! - within[0]!) / (within.length - 1)];
    });
  const [quiet, busy] = [window(0, windowMs), window(windowMs, 2 * windowMs)];
  const ok = records.filter(({ outcome }) => outcome === 'ok');
  return {
    deployment,
    quiet: percentiles(quiet),
    busy: percentiles(busy),
    quietTpot: percentiles(tpots(0, windowMs)),
    busyTpot: percentiles(tpots(windowMs, 2 * windowMs)),
    quietTokensPerSecond: (1000 * quiet.length) / windowMs,
    busyTokensPerSecond: (1000 * busy.length) / windowMs,
    ttft: percentiles(ok.map(ttft)),
    arrived: records.length,
    failed: records.length - ok.length,
    streamsMs,
    records,
  };
}
