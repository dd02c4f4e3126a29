/** `bench rates`: what the planner needs to know, measured through the API: prompts of several lengths, batches of several sizes. */
import { ServingError } from '../../services/lib/process/errors.ts';
import { type RequestRecord, ttft } from '../measure/latency.ts';
import { runOpenLoop, sendOne } from '../measure/load-client.ts';
import { mean, median } from '../measure/statistics.ts';
import type { PromptMaker } from '../system/prompts.ts';
import type { DecodeSample, PrefillSample } from './cost-model.ts';

export interface RatesOptions {
  readonly promptTokens: readonly number[];
  readonly batches: readonly number[];
  readonly repeats: number;
  /** Tokens that each sequence of a batch generates, at least. */
  readonly decodeTokens: number;
  /** Tokens of a slot. */
  readonly capacity: number;
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
      const record = assertComplete(await sendOne(url, request, i, startMs, options));
      if (i > 0) figures.push(ttft(record)); // the first one warms up
    }
    samples.push({ tokens, ms: median(figures) });
  }
  return samples;
}

/** How often a batch is tried, with longer answers each time, until enough of it runs at once. */
const ATTEMPTS = 3;
/** Tokens that a chat frame or the like may add to a prompt. */
const SLACK_TOKENS = 64;

/**
 * Mean time between tokens while so many sequences generate. Prompts are computed one after the other: where the first
 * sequence ends too soon after the last one has begun, the batch runs again, longer by what the prompts took.
 * @throws ServingError internal where a slot is too small for all to generate at once.
 */
export async function measureDecode(url: string, prompts: PromptMaker, options: RatesOptions): Promise<DecodeSample[]> {
  const samples: DecodeSample[] = [];
  const promptTokens = options.promptTokens[0]!;
  const most = options.capacity - promptTokens - SLACK_TOKENS;
  for (const batch of options.batches) {
    let outputTokens = Math.min(options.decodeTokens, most);
    let found: Overlap | undefined;
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const plan = Array.from({ length: batch }, (_, i) => ({
        atMs: 0,
        body: bodyOf(prompts, batch * 10 + i, promptTokens, outputTokens),
      }));
      const overlap = overlapOf((await runOpenLoop(url, plan, options)).map(assertComplete));
      found = overlap;
      const longer = Math.min(most, options.decodeTokens + Math.ceil((1.5 * overlap.startsMs) / overlap.anyMs));
      if (overlap.steps >= options.decodeTokens / 2 || longer <= outputTokens) break;
      outputTokens = longer;
    }
    if (found?.ms === undefined) {
      throw new ServingError(
        'internal',
        `a batch of ${batch} never generated all at once: the first ended before the last began`,
      );
    }
    samples.push({ batch, ms: found.ms });
  }
  return samples;
}

interface Overlap {
  /** Between two tokens while all generate; undefined where they never do. */
  readonly ms: number | undefined;
  /** Between two tokens at any time. */
  readonly anyMs: number;
  /** Tokens of each sequence while all generate, on average. */
  readonly steps: number;
  /** From the first token of the first sequence to that of the last. */
  readonly startsMs: number;
}

/**
 * Of what lies between the last start and the first end. Means: the median would be too small where the client is late and
 * several tokens come at once.
 */
export function overlapOf(records: readonly Pick<RequestRecord, 'chunksMs'>[]): Overlap {
  const starts = records.map(({ chunksMs }) => chunksMs[0]!);
  const from = Math.max(...starts);
  const to = Math.min(...records.map(({ chunksMs }) => chunksMs.at(-1)!));
  const all = records.flatMap(({ chunksMs }) => chunksMs.slice(1).map((at, i) => [chunksMs[i]!, at] as const));
  const together = all.filter(([before, at]) => before >= from && at <= to);
  const lengths = (pairs: typeof all) => pairs.map(([before, at]) => at - before);
  return {
    ms: together.length === 0 ? undefined : mean(lengths(together)),
    anyMs: mean(lengths(all)),
    steps: together.length / records.length,
    startsMs: from - Math.min(...starts),
  };
}

const bodyOf = (prompts: PromptMaker, index: number, tokens: number, outputTokens: number) => ({
  ...prompts.make(index, { tokens, context: 'off', contextTokens: 0 }),
  max_tokens: outputTokens,
  temperature: 0,
  ignore_eos: true,
});

function assertComplete(record: RequestRecord): RequestRecord {
  if (record.outcome === 'ok') return record;
  throw new ServingError('internal', `a request for the planner's rates failed: ${record.code}`);
}
