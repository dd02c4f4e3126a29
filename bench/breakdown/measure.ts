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
import { type BrokenDown, breakDown } from './spans.ts';

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
