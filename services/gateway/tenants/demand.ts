/** What one completion asks of its tenant's limits, as far as that is known before it is tokenized. */
import { ServingError } from '../../lib/process/errors.ts';
import type { CompletionRequest, PromptInput } from '../request.ts';
import type { Demand, TenantLimits } from './token-quota.ts';

/** Sequences that a request asks for. */
export const sequencesOf = ({ prompts, bestOf }: Pick<CompletionRequest, 'prompts' | 'bestOf'>) =>
  prompts.length * bestOf;

/** Characters of source code that make one token, about. What a prompt really took is settled at the end. */
export const CHARACTERS_PER_TOKEN = 4;

/**
 * What is reserved is the output that all sequences may put out, and the prompts: their token ids or, for text, an
 * estimate. An estimate keeps no request out for good: no more than the whole bucket is reserved.
 * @param capacity positions of one slot: a sequence takes no more.
 * @param softPerChunk soft tokens of one chunk.
 * @throws ServingError invalid_request for a request that is larger than a limit as such.
 */
export function demandOf(
  request: CompletionRequest,
  limits: TenantLimits,
  capacity: number,
  softPerChunk = 1,
): Pick<Demand, 'sequences' | 'reserved'> {
  const { maxInflight = Infinity, tokensPerMinute } = limits;
  const sequences = sequencesOf(request);
  if (sequences > maxInflight) {
    throw new ServingError(
      'invalid_request',
      `prompts × best_of are ${sequences} sequences, and the tenant may have ${maxInflight} in flight (max_inflight)`,
      { limit: 'max-inflight' },
    );
  }
  if (tokensPerMinute === undefined) return { sequences, reserved: 0 };
  const output = sequences * Math.min(request.maxTokens, capacity);
  const certain = output + sum(request.prompts.map((prompt) => Math.min(idsIn(prompt, request), capacity)));
  if (certain > tokensPerMinute) {
    throw new ServingError(
      'invalid_request',
      `the prompts and ${sequences} sequences (prompts × best_of) of max_tokens ${request.maxTokens} may take ` +
        `${certain} tokens, and the tenant has ${tokensPerMinute} a minute (tokens_per_minute)`,
      { limit: 'tokens-per-minute' },
    );
  }
  const ofPrompts = request.prompts.map((prompt) => Math.min(estimated(prompt, request, softPerChunk), capacity));
  const estimate = output + sum(ofPrompts);
  return { sequences, reserved: Math.min(tokensPerMinute, Math.max(1, estimate)) };
}

const idsIn = (prompt: PromptInput, { truncatePromptTokens = Infinity }: CompletionRequest) =>
  typeof prompt === 'string' ? 0 : Math.min(prompt.length, truncatePromptTokens);

function estimated(prompt: PromptInput, request: CompletionRequest, softPerChunk: number): number {
  const { suffix = '', completionPrefix = '', rag, overlay = [], truncatePromptTokens = Infinity } = request;
  const characters = (typeof prompt === 'string' ? prompt.length : 0) + suffix.length + completionPrefix.length;
  // Chunks of an overlay may stand as text where the others are soft tokens.
  const asText = rag?.mode === 'text' || rag?.mode === 'mixed' || overlay.length > 0;
  const soft = rag === undefined ? 0 : rag.topK * softPerChunk + (rag.fileTokens ?? 0);
  const context = rag === undefined || rag.mode === 'off' ? 0 : asText ? rag.maxTextTokens : soft;
  const given = idsIn(prompt, request) + Math.ceil(characters / CHARACTERS_PER_TOKEN);
  return Math.min(given, truncatePromptTokens) + context;
}

const sum = (numbers: readonly number[]) => numbers.reduce((total, number) => total + number, 0);
