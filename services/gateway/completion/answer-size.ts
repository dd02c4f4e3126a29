/** How large an answer can become: a short request may ask for the logprobs of a long prompt once per choice. */
import { ServingError } from '../../lib/process/errors.ts';
import type { CompletionRequest } from '../request.ts';

/** Largest answer, in bytes of JSON as {@link answerBytes} estimates them. It is held until it has been read. */
const MAX_ANSWER_BYTES = 16 * 1024 * 1024;

/** Bytes of JSON that a token of code takes, measured with the model that ships. */
const TEXT_BYTES = 4;
const ID_BYTES = 6;
/** For the token's name and place, its own logprob, and each alternative: 28 to 31. */
const LOGPROB_BYTES = 32;

/**
 * Bytes of one choice in an answer, about.
 * @param promptTokens tokens of its prompt.
 * @param outputTokens tokens of its output.
 */
export function answerBytes(request: CompletionRequest, promptTokens: number, outputTokens: number): number {
  const { echo, logprobs, returnTokenIds } = request;
  const shown = TEXT_BYTES + (logprobs === undefined ? 0 : LOGPROB_BYTES * (logprobs + 2));
  const id = returnTokenIds ? ID_BYTES : 0;
  return promptTokens * ((echo ? shown : 0) + id) + outputTokens * (shown + id);
}

/**
 * Output counts where it is held until all of it is there; a stream passes it on as it comes.
 * @param promptTokens tokens of each prompt.
 * @throws ServingError invalid_request
 */
export function assertAnswerFits(request: CompletionRequest, promptTokens: readonly number[]): void {
  const { bestOf, stream, maxTokens, logprobs, echo } = request;
  const outputTokens = stream ? 0 : maxTokens;
  const bytes = promptTokens.reduce((sum, tokens) => sum + bestOf * answerBytes(request, tokens, outputTokens), 0);
  if (bytes <= MAX_ANSWER_BYTES) return;
  const mebibytes = (bytes / 1024 / 1024).toFixed(1);
  const message =
    `the answer could have ${mebibytes} MiB, more than ${MAX_ANSWER_BYTES / 1024 / 1024}: ask for fewer choices ` +
    '(n, best_of), prompts, logprobs or max_tokens, or do without echo or return_token_ids';
  const param = logprobs !== undefined ? 'logprobs' : echo ? 'echo' : 'n';
  throw new ServingError('invalid_request', message, { param });
}
