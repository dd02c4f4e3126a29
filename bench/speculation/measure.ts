/**
 * Two systems of one kind, one of which speculates. Requests go to them in turns, one at a time, and which of both is
 * asked first changes with each pair. What is predicted is made of what the system without speculation has put out:
 *
 *     completion   nothing is predicted: drafts come from retrieved chunks, the prompt, earlier outputs, the output
 *     edit         the output, in which two of twenty equal parts are replaced: a rewrite of 20 lines of which 18 stand
 *     exact        the output itself: the most that can be gained
 *     wrong        tokens of other places of the repository: the most that can be lost
 */
import { text } from 'node:stream/consumers';
import { type CompletionBody, streamCompletion } from '../../services/client.ts';
import { DRAFT_SOURCES, type DraftSource } from '../../services/decode/speculation/draft-index.ts';
import { sendRequest } from '../../services/http-call.ts';
import type { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import type { RunningSystem } from '../../services/supervisor.ts';
import type { PromptMaker } from '../system/prompts.ts';
import type { SpeculationOptions, TraceName } from './command.ts';

/** One request to both systems. */
export interface SpeculationPair {
  readonly temperature: number;
  /** ms per token after the first one. */
  readonly plainTpotMs: number;
  readonly speculativeTpotMs: number;
  /** Whether tokens and finish reason are the same. */
  readonly same: boolean;
}

/** What became of proposed tokens. */
interface SourceCounts {
  readonly source: DraftSource;
  readonly runs: number;
  readonly proposed: number;
  readonly accepted: number;
}

export interface TraceResult {
  readonly trace: TraceName;
  readonly pairs: readonly SpeculationPair[];
  readonly sources: readonly SourceCounts[];
}

export interface SpeculationResult {
  readonly model: string;
  readonly traces: readonly TraceResult[];
}

export interface Pair {
  readonly plain: RunningSystem;
  readonly speculative: RunningSystem;
}

/** Parts of an output, of which those in {@link EDITED} are replaced in an edit. */
const PARTS = 20;
const EDITED = [6, 13];

/** The text that is predicted for an output; undefined for none. */
export function predictionOf(
  trace: TraceName,
  output: readonly number[],
  other: readonly number[],
  tokenizer: Pick<Tokenizer, 'decode'>,
): string | undefined {
  if (trace === 'completion') return undefined;
  const size = Math.max(1, Math.ceil(output.length / PARTS));
  const isReplaced = (i: number) => trace === 'wrong' || (trace === 'edit' && EDITED.includes(Math.floor(i / size)));
  return tokenizer.decode(output.map((id, i) => (isReplaced(i) ? (other[i % other.length] ?? id) : id)));
}

/** Sends the requests of one trace to both systems. */
export async function measureTrace(
  trace: TraceName,
  { plain, speculative }: Pair,
  prompts: PromptMaker,
  tokenizer: Tokenizer,
  options: SpeculationOptions,
  onPair: (pair: number) => void,
): Promise<TraceResult> {
  const pairs: SpeculationPair[] = [];
  let before = await countsOf(speculative, options.timeoutMs);
  for (let i = 0; i <= options.pairs; i++) {
    const temperature = options.temperatures[i % options.temperatures.length]!;
    const body = bodyOf(prompts, i, temperature, options);
    const ask = ({ url }: RunningSystem, prediction: string | undefined) => {
      const predicted =
        prediction === undefined ? {} : { prediction: { type: 'content' as const, content: prediction } };
      return streamCompletion(url, { ...body, ...predicted }, AbortSignal.timeout(options.timeoutMs));
    };
    // The output is needed for the prediction, so the system without speculation is asked for it before the pair.
    const output = trace === 'completion' ? [] : (await ask(plain, undefined)).tokenIds;
    const other = prompts.blocks([i + 1], Math.max(1, output.length));
    const prediction = predictionOf(trace, output, other, tokenizer);
    const answers = new Map<RunningSystem, Awaited<ReturnType<typeof ask>>>();
    for (const system of i % 2 === 0 ? [plain, speculative] : [speculative, plain]) {
      answers.set(system, await ask(system, prediction));
    }
    const [a, b] = [answers.get(plain)!, answers.get(speculative)!];
    const same = a.finishReason === b.finishReason && String(a.tokenIds) === String(b.tokenIds);
    const pair = { temperature, plainTpotMs: tpotMs(a), speculativeTpotMs: tpotMs(b), same };
    if (i > 0) pairs.push(pair);
    else before = await countsOf(speculative, options.timeoutMs);
    onPair(i);
  }
  const after = await countsOf(speculative, options.timeoutMs);
  const sources = after.map(({ source, ...counts }, at) => ({
    source,
    runs: counts.runs - before[at]!.runs,
    proposed: counts.proposed - before[at]!.proposed,
    accepted: counts.accepted - before[at]!.accepted,
  }));
  return { trace, pairs, sources: sources.filter(({ runs }) => runs > 0) };
}

function bodyOf(prompts: PromptMaker, i: number, temperature: number, options: SpeculationOptions): CompletionBody {
  const { promptTokens, outputTokens, context, seed } = options;
  return {
    ...prompts.make(i, { tokens: promptTokens, context, contextTokens: context === 'off' ? 0 : 10 }),
    max_tokens: outputTokens,
    temperature,
    seed: seed + i,
    ignore_eos: true,
    return_token_ids: true,
  };
}

function tpotMs({ chunksAtMs, tokenIds }: Awaited<ReturnType<typeof streamCompletion>>): number {
  return (chunksAtMs.at(-1)! - chunksAtMs[0]!) / Math.max(1, tokenIds.length - 1);
}

/** What the decode workers of a system have counted since their start, by source. */
async function countsOf({ processes }: RunningSystem, timeoutMs: number): Promise<SourceCounts[]> {
  const decoders = processes.filter(({ name }) => /^(decode|colocated)/.test(name));
  const signal = AbortSignal.timeout(timeoutMs);
  const pages = await Promise.all(
    decoders.map(async ({ metricsAddress }) =>
      text(await sendRequest({ method: 'GET', url: `http://${metricsAddress}/metrics`, headers: {}, signal })),
    ),
  );
  const sum = (metric: string, source: string) =>
    pages
      .flatMap((page) => [...page.matchAll(new RegExp(`^${metric}\\{[^}]*source="${source}"[^}]*\\} (\\S+)`, 'gm'))])
      .reduce((total, [, value]) => total + Number(value), 0);
  return DRAFT_SOURCES.map((source) => ({
    source,
    runs: sum('vllm:spec_decode_num_drafts_total', source),
    proposed: sum('vllm:spec_decode_num_draft_tokens_total', source),
    accepted: sum('vllm:spec_decode_num_accepted_tokens_total', source),
  }));
}
