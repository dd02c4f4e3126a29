/**
 * Two systems of one kind, one of which speculates. Requests go to them in turns, one at a time, and which of both is
 * asked first changes with each pair. What is predicted is made of what the system without speculation has put out:
 *
 *     completion   nothing is predicted: drafts come from retrieved chunks, the prompt, earlier outputs, the output
 *     edit         the output, in which two of twenty equal parts are replaced: a rewrite of 20 lines of which 18 stand
 *     exact        the output itself: the most that can be gained
 *     wrong        tokens of other places of the repository: the most that can be lost
 */
import { type CompletionBody, streamCompletion } from '../../services/client.ts';
import type { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import type { RunningSystem } from '../../services/supervisor.ts';
import type { PromptMaker } from '../system/prompts.ts';
import type { SpeculationOptions, TraceName } from './command.ts';
import { countedBetween, countsOf, type SourceCounts } from './sources.ts';

/** One request to both systems. */
export interface SpeculationPair {
  readonly temperature: number;
  /** ms per token after the first one. */
  readonly plainTpotMs: number;
  readonly speculativeTpotMs: number;
  /** Whether tokens and finish reason are the same. */
  readonly same: boolean;
}

export interface TraceResult {
  readonly trace: TraceName;
  readonly pairs: readonly SpeculationPair[];
  readonly sources: readonly SourceCounts[];
}

type Subject = Pick<RunningSystem, 'url' | 'processes'>;

export interface Pair {
  readonly plain: Subject;
  readonly speculative: Subject;
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
    const ask = ({ url }: Subject, prediction: string | undefined) => {
      const predicted =
        prediction === undefined ? {} : { prediction: { type: 'content' as const, content: prediction } };
      return streamCompletion(url, { ...body, ...predicted }, AbortSignal.timeout(options.timeoutMs));
    };
    // The output is needed for the prediction, so the system without speculation is asked for it before the pair.
    const output = trace === 'completion' ? [] : (await ask(plain, undefined)).tokenIds;
    const other = prompts.blocks([i + 1], Math.max(1, output.length));
    const prediction = predictionOf(trace, output, other, tokenizer);
    const answers = new Map<Subject, Awaited<ReturnType<typeof ask>>>();
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
  const sources = countedBetween(before, await countsOf(speculative, options.timeoutMs));
  return { trace, pairs, sources };
}

/**
 * A request of `outputTokens` tokens, whose end the model does not choose.
 * @param i chooses prompt and seed.
 */
export function bodyOf(
  prompts: Pick<PromptMaker, 'make'>,
  i: number,
  temperature: number,
  options: Pick<SpeculationOptions, 'promptTokens' | 'outputTokens' | 'context' | 'seed'>,
): CompletionBody {
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
