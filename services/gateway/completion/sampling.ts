/** How each choice of a request is sampled, and the check of the token ids that a request names. */
import { ServingError } from '../../lib/process/errors.ts';
import type { Sampling } from '../../lib/request/next-token.ts';
import type { PromptFormat } from '../../lib/text/prompt-format.ts';
import type { CompletionRequest } from '../request.ts';

const SEEDS = 2 ** 53;
/** Odd, so that the choices of one request get different seeds. */
const SEED_STEP = 0x9e3779b1;

/** One per choice. The first draws with the request's own seed, so that the answer to n = 1 is the first of n. */
export function samplingsOf(request: CompletionRequest, format: PromptFormat, seed: number): Sampling[] {
  const stopTokenIds = stopIdsOf(request, format);
  return Array.from({ length: request.bestOf }, (_, i) => {
    const shifted = (seed + i * SEED_STEP) % SEEDS;
    return { ...request.sampling, stopTokenIds, seed: shifted < 0 ? shifted + SEEDS : shifted };
  });
}

/** Token ids that end a choice: the model's own, unless the request ignores them, and the request's. */
export function stopIdsOf(request: CompletionRequest, format: PromptFormat): number[] {
  const own = request.ignoreEos ? [] : format.stopIds;
  return [...new Set([...own, ...request.sampling.stopTokenIds])];
}

/** @throws ServingError invalid_request for a token id that is not in the vocabulary. */
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
      const message = `${param}: token id ${id} is not in this model's vocabulary of ${vocabSize} tokens`;
      throw new ServingError('invalid_request', message, { param });
    }
  }
}
