/** `bench rates`: what the planner needs to know, measured through the API: prompts of several lengths, batches of several sizes. */
import { ServingError } from '../services/lib/process/errors.ts';
import { gaps, type RequestRecord, ttft } from './measure/latency.ts';
import { runOpenLoop, sendOne } from './measure/load-client.ts';
import { mean, median } from './measure/statistics.ts';
import type { DecodeSample, PrefillSample } from './plan/cost-model.ts';
import type { PromptMaker } from './system/prompts.ts';

export interface RatesOptions {
  readonly promptTokens: readonly number[];
  readonly batches: readonly number[];
  readonly repeats: number;
  /** Tokens that each sequence of a batch generates. */
  readonly decodeTokens: number;
  readonly timeoutMs: number;
}

/** Medians of one-token requests, one at a time. */
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
      const record = checked(await sendOne(url, request, i, startMs, options));
      if (i > 0) figures.push(ttft(record)); // the first one warms up
    }
    samples.push({ tokens, ms: median(figures) });
  }
  return samples;
}

/**
 * Mean time between tokens while so many sequences generate; only what lies between the last start and the first end. The
 * median would be too small: where the client is late, several tokens come at once.
 */
export async function measureDecode(url: string, prompts: PromptMaker, options: RatesOptions): Promise<DecodeSample[]> {
  const samples: DecodeSample[] = [];
  for (const batch of options.batches) {
    const plan = Array.from({ length: batch }, (_, i) => ({
      atMs: 0,
      body: bodyOf(prompts, batch * 10 + i, options.promptTokens[0]!, options.decodeTokens),
    }));
    const records = (await runOpenLoop(url, plan, options)).map(checked);
    const from = Math.max(...records.map(({ chunksMs }) => chunksMs[0]!));
    const to = Math.min(...records.map(({ chunksMs }) => chunksMs.at(-1)!));
    const together = records.flatMap((record) => {
      const times = record.chunksMs;
      return gaps(record).filter((_, i) => times[i]! >= from && times[i + 1]! <= to);
    });
    if (together.length > 0) samples.push({ batch, ms: mean(together) });
  }
  return samples;
}

const bodyOf = (prompts: PromptMaker, index: number, tokens: number, outputTokens: number) => ({
  ...prompts.make(index, { tokens, context: 'off', contextTokens: 0 }),
  max_tokens: outputTokens,
  temperature: 0,
  ignore_eos: true,
});

function checked(record: RequestRecord): RequestRecord {
  if (record.outcome === 'ok') return record;
  throw new ServingError('internal', `a request for the planner's rates failed: ${record.code}`);
}
