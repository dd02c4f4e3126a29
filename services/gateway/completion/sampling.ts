/** What a request asks of each of its choices: how to sample it, when it ends, what is given back with it. */
import { ServingError } from '../../lib/process/errors.ts';
import type { SampledToken, Sampling } from '../../lib/request/next-token.ts';
import type { TokenPrompt } from '../../lib/request/token-prompt.ts';
import { leadingIds } from '../../lib/text/prompt.ts';
import type { PromptFormat } from '../../lib/text/prompt-format.ts';
import type { Tokenizer } from '../../lib/text/tokenizer.ts';
import type { CompletionRequest } from '../request.ts';
import { Choice } from './choice.ts';

const SEEDS = 2 ** 53;
/** Odd, so that the choices of one request get different seeds. */
const SEED_STEP = 0x9e3779b1;

/** One per choice; the first draws with the request's own seed, so that n = 1 is the first of n. */
export function samplingsOf(request: CompletionRequest, format: PromptFormat, seed: number): Sampling[] {
  const stopTokenIds = stopIdsOf(request, format);
  return Array.from({ length: request.bestOf }, (_, i) => {
    const shifted = (seed + i * SEED_STEP) % SEEDS;
    return { ...request.sampling, stopTokenIds, seed: shifted < 0 ? shifted + SEEDS : shifted };
  });
}

function stopIdsOf(request: CompletionRequest, format: PromptFormat): number[] {
  const own = request.ignoreEos ? [] : format.stopIds;
  return [...new Set([...own, ...request.sampling.stopTokenIds])];
}

/** One per sampling, for the prompt at `promptIndex`. */
export function choicesOf(
  request: CompletionRequest,
  promptIndex: number,
  prompt: TokenPrompt,
  tokenizer: Tokenizer,
  format: PromptFormat,
): Choice[] {
  const stopIds = new Set(stopIdsOf(request, format));
  const markers = new Set(format.stopIds);
  const promptTokenIds = Array.from(prompt.ids);
  return Array.from({ length: request.bestOf }, (_, choice) => {
    const rules = {
      prompt: promptIndex,
      choice,
      maxTokens: request.maxTokens,
      minTokens: request.sampling.minTokens,
      stop: request.stop,
      stopIds,
      wantLogprobs: request.logprobs !== undefined,
      bytes: (id: number) => tokenizer.bytes(id),
      skip: (id: number) => tokenizer.isSpecial(id) || markers.has(id),
    };
    return new Choice(rules, promptTokenIds);
  });
}

/**
 * The prompt as it is given back: the client's own words where nothing of them was cut.
 * @param logprobs one per prompt position, or none.
 */
export function echoOf(
  request: CompletionRequest,
  promptIndex: number,
  prompt: TokenPrompt,
  logprobs: readonly SampledToken[],
  tokenizer: Tokenizer,
): { text: string; tokens: SampledToken[] } {
  const input = request.prompts[promptIndex]!;
  const sent = typeof input === 'string' && request.truncatePromptTokens === undefined ? input : undefined;
  const leading = leadingIds(tokenizer, { prompt: input, addSpecialTokens: request.addSpecialTokens }, false).length;
  const ids = Array.from(prompt.ids).slice(leading);
  const own = logprobs.slice(leading);
  return { text: sent ?? tokenizer.decode(ids), tokens: ids.map((id, i) => ({ ...own[i], id })) };
}

/** @throws ServingError invalid_request for ids that the vocabulary does not have. */
export function assertKnownIds(request: CompletionRequest, vocabSize: number): void {
  const lists: [param: string, ids: Iterable<number>][] = [
    ...request.prompts
      .filter((prompt) => typeof prompt !== 'string')
      .map((ids) => ['prompt', ids] as [string, number[]]),
    ['logit_bias', request.sampling.logitBias.keys()],
    ['stop_token_ids', request.sampling.stopTokenIds],
  ];
  for (const [param, ids] of lists) {
    for (const id of ids) {
      if (id < vocabSize) continue;
      throw new ServingError(
        'invalid_request',
        `${param}: token id ${id} is not among the ${vocabSize} of this model`,
        {
          param,
        },
      );
    }
  }
}
