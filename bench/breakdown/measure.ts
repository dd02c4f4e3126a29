/**
 * `bench breakdown` shows where the time of a request goes, by the gateway's timeline and the durations that workers
 * report (services/lib/request/timeline.ts). It sends one request at a time, so that queues are empty and only costs
 * remain. The overhead over the bare engine is a difference of two measurements: after each request, while the systems
 * are idle, the bare engine computes a prompt of as many tokens, so that disturbances by other programs fall on both.
 */
import { streamCompletion, ttftMs } from '../../services/client.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { BareEngine } from '../engine/bare.ts';
import { type ContextMode, contextTokens } from '../system/context.ts';
import type { PromptMaker } from '../system/prompts.ts';
import type { BreakdownOptions } from './command.ts';

interface StageSpan {
  readonly stage: string;
  /** Explains the stage to the reader of the table. */
  readonly meaning: string;
  /** Start in ms since the client sent the request. */
  readonly startMs: number;
  readonly durationMs: number;
}

interface BrokenDown {
  readonly spans: readonly StageSpan[];
  readonly ttftMs: number;
  readonly totalMs: number;
  /** Duration of a prompt of as many tokens on the bare engine; undefined without a bare engine. */
  readonly bareMs: number | undefined;
  /** TTFT minus that duration. */
  readonly overheadMs: number | undefined;
  /** Time until all KV had arrived, from the end of the last prompt chunk. */
  readonly exposedMs: number;
  readonly timeline: Readonly<Record<string, number>>;
}

export interface BreakdownRequest extends BrokenDown {
  /** Tokens of the whole prompt as the gateway counts them, including soft tokens. */
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

/** @param bare an engine that computes prompts as the prefill worker of the deployment does. */
export async function measureBreakdown(
  url: string,
  deployment: string,
  prompts: PromptMaker,
  options: Pick<BreakdownOptions, 'codeTokens' | 'outputTokens' | 'requests' | 'timeoutMs'> & { context: ContextMode },
  bare?: Pick<BareEngine, 'prefill'>,
): Promise<BreakdownRun> {
  const { context, codeTokens, outputTokens, timeoutMs } = options;
  const added = contextTokens(context);
  const requests: BreakdownRequest[] = [];
  // All contexts have the same code around the cursor. The first request warms up and is not counted.
  for (let i = 0; i <= options.requests; i++) {
    const body = {
      ...prompts.make(i, { tokens: codeTokens + added, context, contextTokens: added }),
      max_tokens: outputTokens,
      temperature: 0,
      ignore_eos: true,
    };
    const done = await streamCompletion(url, body, AbortSignal.timeout(timeoutMs), { timeline: true });
    if (done.timeline === undefined) {
      throw new ServingError('invalid_request', `${url} sends no timeline: give the --url of a LlavaCode gateway`);
    }
    const clientTtft = ttftMs(done);
    const total = (done.chunksAtMs.at(-1) ?? done.endedAtMs) - done.sentAtMs;
    const promptTokens = done.usage.prompt_tokens;
    const bareMs = await bare?.prefill(promptTokens);
    if (i > 0) requests.push({ promptTokens, ...breakDown(done.timeline, clientTtft, total, bareMs) });
  }
  return { deployment, context, requests };
}

/**
 * Divides a request into spans that follow one another without a gap, from sending to the last token. Workers report
 * durations and not times: the RPC span is the time from dispatch to first token minus the time spent in the worker.
 * @param timeline ms since the gateway received the request, by event, and durations in ms by stage (`…_ms`).
 * @param bareMs duration of the prompt on the bare engine.
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
  // The stage counts all tokens; the first one lies before the TTFT, and its share is negligible.
  const detokenize = Math.max(0, Math.min(stage('detokenize'), decoding));
  const durations: readonly [string, string, number][] = [
    ['network', 'client ⇄ gateway: the time that the client waits beyond what the gateway counts', ttft - first],
    ['admit', 'the request is validated and gets a place', at('admitted')],
    ['retrieve', 'the chunks are retrieved', at('retrieved') - at('admitted')],
    ['tokenize', 'the prompt is built', at('tokenized') - at('retrieved')],
    ['dispatch', 'the workers are chosen', at('dispatched') - at('tokenized')],
    ['queue', 'waiting in the prefill worker', stage('prefill_queue')],
    ['prefill', 'the prefill worker computes the prompt', stage('prefill')],
    ['rpc', 'gateway ⇄ prefill worker', first - at('dispatched') - inWorker],
    ['handoff', 'KV that arrives after the last prompt chunk', Math.min(exposed, joined - first)],
    ['decode queue', 'waiting for a slot and for the batch', Math.max(0, joined - first - exposed)],
    ['detokenize', 'tokens become text', detokenize],
    ['steps', 'decoding and sending', decoding - detokenize],
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
