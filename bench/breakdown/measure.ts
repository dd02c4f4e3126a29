/**
 * `bench breakdown`: where the time of a request goes, by the gateway's timeline and the workers' own durations
 * (services/lib/request/timeline.ts). One request at a time, so that queues are empty and what is left is cost. What is
 * added to the bare engine is a difference of two measurements: each request is followed by a prompt of as many tokens on
 * the bare engine, while the systems are idle, so that whatever else the machine does falls on both.
 */
import { streamCompletion, ttftMs } from '../../services/client.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { BareEngine } from '../engine/bare.ts';
import { contextTokens } from '../load/measure.ts';
import type { ContextMode, PromptMaker } from '../system/prompts.ts';

export interface StageSpan {
  readonly stage: string;
  /** What is counted, for the reader of the table. */
  readonly meaning: string;
  /** ms since the client sent the request. */
  readonly startMs: number;
  readonly durationMs: number;
}

export interface BrokenDown {
  readonly spans: readonly StageSpan[];
  readonly ttftMs: number;
  readonly totalMs: number;
  /** A prompt of as many tokens on the bare engine; undefined where there is none beside the system. */
  readonly bareMs: number | undefined;
  /** TTFT less that. */
  readonly overheadMs: number | undefined;
  /** KV that was still to come after the last prompt chunk. */
  readonly exposedMs: number;
  readonly timeline: Readonly<Record<string, number>>;
}

export interface BreakdownRequest extends BrokenDown {
  /** Of the whole prompt, as the gateway counts them: soft tokens too. */
  readonly promptTokens: number;
}

export interface BreakdownRun {
  readonly deployment: string;
  readonly context: ContextMode;
  readonly requests: readonly BreakdownRequest[];
}

export interface BreakdownResult {
  readonly model: string;
  readonly promptTokens: number;
  readonly outputTokens: number;
  readonly runs: readonly BreakdownRun[];
}

export interface BreakdownOptions {
  readonly context: ContextMode;
  /** Tokens of the prompt without its context: the same code around the cursor for all contexts. */
  readonly codeTokens: number;
  readonly outputTokens: number;
  readonly requests: number;
  readonly timeoutMs: number;
}

/** @param bare as the deployment's prefill worker computes. */
export async function measureBreakdown(
  url: string,
  deployment: string,
  prompts: PromptMaker,
  options: BreakdownOptions,
  bare?: Pick<BareEngine, 'prefill'>,
): Promise<BreakdownRun> {
  const { context, codeTokens, outputTokens, timeoutMs } = options;
  const added = contextTokens(context);
  const requests: BreakdownRequest[] = [];
  // The first one warms up.
  for (let i = 0; i <= options.requests; i++) {
    const body = {
      ...prompts.make(i, { tokens: codeTokens + added, context, contextTokens: added }),
      max_tokens: outputTokens,
      temperature: 0,
      ignore_eos: true,
    };
    const done = await streamCompletion(url, body, AbortSignal.timeout(timeoutMs), { timeline: true });
    if (done.timeline === undefined) throw new ServingError('internal', `${url} gives no timeline: is it LlavaCode's?`);
    const clientTtft = ttftMs(done);
    const total = (done.chunksAtMs.at(-1) ?? done.endedAtMs) - done.sentAtMs;
    const promptTokens = done.usage.prompt_tokens;
    const bareMs = await bare?.prefill(promptTokens);
    if (i > 0) requests.push({ promptTokens, ...breakDown(done.timeline, clientTtft, total, bareMs) });
  }
  return { deployment, context, requests };
}

/**
 * Spans that follow one another without a gap, from sending to the last token. What happens in a worker is known as a
 * duration, not by its place: RPC is what dispatch to first token leaves of the worker's own time.
 * @param timeline ms since the gateway received the request, by event; ms by stage (`…_ms`).
 * @param bareMs what the bare engine takes for the prompt.
 */
export function breakDown(
  timeline: Readonly<Record<string, number>>,
  ttft: number,
  total: number,
  bareMs?: number,
): BrokenDown {
  const at = (event: string) => timeline[event] ?? 0;
  const stage = (name: string) => timeline[`${name}_ms`] ?? 0;
  const first = at('first_token');
  const joined = Math.max(timeline['joined'] ?? first, first);
  const inWorker = stage('prefill_queue') + stage('prefill');
  const exposed = stage('handoff_exposed');
  const decoding = total - ttft - (joined - first);
  // Of all tokens; the first one's, which lies before the TTFT, is as short as any other's.
  const detokenize = Math.max(0, Math.min(stage('detokenize'), decoding));
  const durations: readonly [string, string, number][] = [
    ['network', 'client ⇄ gateway: what the client waits longer than the gateway counts', ttft - first],
    ['admit', 'validated, a place reserved', at('admitted')],
    ['retrieve', 'chunks found', at('retrieved') - at('admitted')],
    ['tokenize', 'prompt built', at('tokenized') - at('retrieved')],
    ['dispatch', 'workers chosen', at('dispatched') - at('tokenized')],
    ['queue', 'waiting in the prefill worker', stage('prefill_queue')],
    ['prefill', 'the prefill worker computes the prompt', stage('prefill')],
    ['rpc', 'gateway ⇄ prefill worker', first - at('dispatched') - inWorker],
    ['handoff', 'KV still to come after the last prompt chunk', Math.min(exposed, joined - first)],
    ['decode queue', 'waiting for a slot, and for the batch', Math.max(0, joined - first - exposed)],
    ['detokenize', 'tokens made text', detokenize],
    ['steps', 'decoding, sending', decoding - detokenize],
  ];
  let startMs = 0;
  const spans = durations.map(([name, meaning, durationMs]) => {
    const span = { stage: name, meaning, startMs, durationMs };
    startMs += durationMs;
    return span;
  });
  const overheadMs = bareMs === undefined ? undefined : ttft - bareMs;
  return { spans, ttftMs: ttft, totalMs: total, bareMs, overheadMs, exposedMs: exposed, timeline };
}
