/**
 * Measures the rates that the planner needs, through the API: prompts of several lengths, and batches of several sizes.
 */

import type { DecodeSample, PrefillSample } from '../../services/lib/numeric/cost-model.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { type ClientRecord, ttft } from '../measure/latency.ts';
import { runOpenLoop, sendOne } from '../measure/load-client.ts';
import { median } from '../measure/statistics.ts';
import type { PromptMaker } from '../system/prompts.ts';
import { overlapOf } from './overlap.ts';

interface RatesOptions {
  readonly promptTokens: readonly number[];
  readonly batches: readonly number[];
  readonly repeats: number;
  /** Least number of tokens that each sequence of a batch generates. */
  readonly decodeTokens: number;
  /** Tokens of a slot. */
  readonly capacity: number;
  readonly timeoutMs: number;
}

/** Medians of requests of one output token, sent one at a time. */
export async function measurePrefill(
  url: string,
  prompts: PromptMaker,
  options: RatesOptions,
): Promise<PrefillSample[]> {
  const samples: PrefillSample[] = [];
  for (const tokens of options.promptTokens) {
    const figures: number[] = [];
    for (let i = 0; i <= options.repeats; i++) {
      const startMs = performance.now();
      const request = { atMs: 0, body: bodyOf(prompts, tokens + i, tokens, 1) };
      const record = assertComplete(await sendOne(url, request, i, startMs, options));
      if (i > 0) figures.push(ttft(record)); // the first one warms up
    }
    samples.push({ tokens, ms: median(figures) });
  }
  return samples;
}

/** Number of attempts at a batch. Each asks for longer answers, until enough of the batch runs at once. */
const ATTEMPTS = 3;
/** Tokens that a frame, such as that of a chat, may add to a prompt. */
const SLACK_TOKENS = 64;

/**
 * Measures the mean time between tokens while a batch of sequences generates. Prompts are computed one after the other:
 * if the first sequence ends too soon after the last one has begun, the batch runs again with longer answers.
 * @throws ServingError internal if a slot is too small for all sequences to generate at once.
 */
export async function measureDecode(url: string, prompts: PromptMaker, options: RatesOptions): Promise<DecodeSample[]> {
  const samples: DecodeSample[] = [];
  const promptTokens = options.promptTokens[0]!;
  const most = options.capacity - promptTokens - SLACK_TOKENS;
  for (const batch of options.batches) {
    let outputTokens = Math.min(options.decodeTokens, most);
    let foundMs: number | undefined;
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const plan = Array.from({ length: batch }, (_, i) => ({
        atMs: 0,
        body: bodyOf(prompts, batch * 10 + i, promptTokens, outputTokens),
      }));
      const overlap = overlapOf((await runOpenLoop(url, plan, options)).map(assertComplete));
      foundMs = overlap.ms;
      const longer = Math.min(most, options.decodeTokens + Math.ceil((1.5 * overlap.startsMs) / overlap.anyMs));
      if (overlap.steps >= options.decodeTokens / 2 || longer <= outputTokens) break;
      outputTokens = longer;
    }
    if (foundMs === undefined) {
      throw new ServingError(
        'internal',
        `the ${batch} sequences of a batch never generated at once, the first ended before the last began: raise --capacity`,
      );
    }
    samples.push({ batch, ms: foundMs });
  }
  return samples;
}

const bodyOf = (prompts: PromptMaker, index: number, tokens: number, outputTokens: number) => ({
  ...prompts.make(index, { tokens, context: 'off', contextTokens: 0 }),
  max_tokens: outputTokens,
  temperature: 0,
  ignore_eos: true,
});

function assertComplete(record: ClientRecord): ClientRecord {
  if (record.outcome === 'ok') return record;
  throw new ServingError('internal', `a request for the planner's rates failed: ${record.code}`);
}
