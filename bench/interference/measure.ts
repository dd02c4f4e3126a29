/**
 * `bench interference` measures what disaggregation is for. Some streams generate; after a quiet window, long prompts
 * arrive at an even pace. How much longer do the streams now wait for each token, and how long do the prompts wait?
 */
import { setTimeout as delay } from 'node:timers/promises';
import { streamCompletion } from '../../services/client.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { type ClientRecord, type Percentiles, percentiles, ttft } from '../measure/latency.ts';
import { runOpenLoop, sendOne } from '../measure/load-client.ts';
import { median } from '../measure/statistics.ts';
import type { PromptMaker } from '../system/prompts.ts';
import type { InterferenceOptions } from './command.ts';

/** Lengths that no option changes: prompts of the streams, and outputs of the prompts that arrive, in tokens. */
export const STREAM_SHAPE = { streamPromptTokens: 200, outputTokens: 4 } as const;

type PromptOptions = Pick<InterferenceOptions, 'promptTokens' | 'timeoutMs'>;

interface WindowOptions extends PromptOptions, Pick<InterferenceOptions, 'streams' | 'capacity'> {
  /** Length of the quiet window and of the busy window. */
  readonly windowMs: number;
}

export interface InterferenceRun {
  readonly deployment: string;
  /** Times between two tokens of a stream in ms, in the quiet window and in the busy one. */
  readonly quiet: Percentiles;
  readonly busy: Percentiles;
  /** Tokens per second of all streams together. */
  readonly quietTokensPerSecond: number;
  readonly busyTokensPerSecond: number;
  /** TTFT in ms of the prompts that arrived. */
  readonly ttft: Percentiles;
  readonly arrived: number;
  readonly failed: number;
  /** TPOT in ms, over the streams. */
  readonly quietTpot: Percentiles;
  readonly busyTpot: Percentiles;
  /** Times of the tokens of each stream, in ms from the start of the quiet window. */
  readonly streamsMs: readonly (readonly number[])[];
  readonly records: readonly ClientRecord[];
}

export interface InterferenceResult {
  readonly model: string;
  readonly options: WindowOptions & typeof STREAM_SHAPE;
  readonly everyMs: number;
  readonly runs: readonly InterferenceRun[];
}

/** TTFT of one such prompt on an idle system: the median of three, in ms. */
export async function idleTtft(url: string, prompts: PromptMaker, options: PromptOptions): Promise<number> {
  const startMs = performance.now();
  const figures: number[] = [];
  for (let i = 0; i < 4; i++) {
    const atMs = performance.now() - startMs;
    const record = await sendOne(url, { atMs, body: arriving(prompts, options, i) }, i, startMs, options);
    if (record.outcome !== 'ok') {
      throw new ServingError('internal', `a prompt on an idle system failed: ${record.code}`);
    }
    if (i > 0) figures.push(ttft(record)); // the first one warms up
  }
  return median(figures);
}

export async function measureInterference(
  url: string,
  deployment: string,
  prompts: PromptMaker,
  options: WindowOptions,
  everyMs: number,
): Promise<InterferenceRun> {
  const { streams, windowMs, timeoutMs } = options;
  const end = new AbortController();
  const stamps: number[][][] = Array.from({ length: streams }, () => []);
  const running = stamps.map((lives, i) => stream(url, prompts, options, i, lives, end.signal));
  // Rejects when a stream fails, so that nothing waits for it any longer; never resolves.
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

/**
 * Runs one stream and its successors: each ends when its slot is full, and the next one begins.
 * @param lives gets the times of the tokens of each.
 */
async function stream(
  url: string,
  prompts: PromptMaker,
  options: WindowOptions,
  index: number,
  lives: number[][],
  signal: AbortSignal,
): Promise<void> {
  const { streams, capacity } = options;
  const tokens = STREAM_SHAPE.streamPromptTokens;
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
    if (performance.now() > deadline)
      throw new ServingError(
        'deadline_exceeded',
        `the streams did not begin within ${timeoutMs} ms: raise --timeout-ms`,
      );
    await delay(20);
  }
}

/** The body of a prompt that arrives. */
const arriving = (prompts: PromptMaker, { promptTokens }: PromptOptions, index: number) => ({
  ...prompts.make(index, { tokens: promptTokens, context: 'off', contextTokens: 0 }),
  max_tokens: STREAM_SHAPE.outputTokens,
  temperature: 0,
  ignore_eos: true,
});

function summary(
  deployment: string,
  streamsMs: readonly (readonly number[])[],
  records: readonly ClientRecord[],
  windowMs: number,
): InterferenceRun {
  const gaps = (from: number, to: number) =>
    streamsMs.flatMap((times) => times.slice(1).flatMap((at, i) => (at >= from && at < to ? [at - times[i]!] : [])));
  /** TPOT of each stream over the tokens that it put out between two times. */
  const tpots = (from: number, to: number) =>
    streamsMs.flatMap((times) => {
      const within = times.filter((at) => at >= from && at < to);
      return within.length < 2 ? [] : [(within.at(-1)! - within[0]!) / (within.length - 1)];
    });
  const [quiet, busy] = [gaps(0, windowMs), gaps(windowMs, 2 * windowMs)];
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
