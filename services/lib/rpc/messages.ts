/** Converts the types of request/ to messages and back. */
import { ServingError } from '../process/errors.ts';
import type { FinishReason, SampledToken, Sampling } from '../request/next-token.ts';
import type { SoftTokens } from '../request/token-prompt.ts';
import type { Sampling__Output, Sampling as SamplingMessage } from './gen/llavacode/v1/Sampling.ts';
import type { SoftTokens__Output, SoftTokens as SoftTokensMessage } from './gen/llavacode/v1/SoftTokens.ts';
import type { Token__Output } from './gen/llavacode/v1/Token.ts';

export const samplingMessage = (sampling: Sampling): SamplingMessage => ({
  ...sampling,
  logitBias: Object.fromEntries(sampling.logitBias),
  stopTokenIds: [...sampling.stopTokenIds],
  priorOutputIds: [...sampling.priorOutputIds],
});

export const readSampling = (message: Sampling__Output): Sampling => ({
  ...message,
  logitBias: new Map(Object.entries(message.logitBias).map(([id, bias]) => [Number(id), bias])),
});

export const softTokensMessage = (soft: SoftTokens): SoftTokensMessage => ({
  positions: Array.from(soft.positions),
  vectors: new Uint8Array(soft.vectors.buffer, soft.vectors.byteOffset, soft.vectors.byteLength),
});

/** @throws ServingError invalid_request if the vectors are not a whole number of floats. */
export function readSoftTokens(message: SoftTokens__Output | null): SoftTokens {
  const bytes = message?.vectors ?? Buffer.alloc(0);
  if (bytes.length % 4 !== 0) {
    throw new ServingError(
      'invalid_request',
      `the vectors of soft tokens have ${bytes.length} bytes, which is not a multiple of 4`,
    );
  }
  const vectors = new Float32Array(bytes.length / 4);
  // Copied, because the bytes of a message need not be aligned for floats.
  new Uint8Array(vectors.buffer).set(bytes);
  return { positions: Int32Array.from(message?.positions ?? []), vectors };
}

export const tokenMessage = (token: SampledToken) => ({
  id: token.id,
  logprob: token.logprob ?? 0,
  top: token.top?.map((alternative) => ({ ...alternative })) ?? [],
});

/** @param logprobs whether they were asked for; if not, the message's zeros mean nothing. */
export const readToken = (message: Token__Output, logprobs: boolean): SampledToken =>
  logprobs ? { id: message.id, logprob: message.logprob, top: message.top } : { id: message.id };

/** Returns undefined for "", which stands for a sequence that goes on. */
export function readFinishReason(text: string): FinishReason | undefined {
  return text === 'stop' || text === 'length' ? text : undefined;
}
