/** How the next token is chosen, and what a worker reports of it. Gateway, prefill and decode share these. */

/** How the next token is chosen. The draw for output position i depends on (seed, i) alone. */
export interface Sampling {
  /** 0 always takes the likeliest token (greedy). */
  readonly temperature: number;
  readonly topP: number;
  /** 0 keeps all tokens. */
  readonly topK: number;
  readonly minP: number;
  /** Whole number below 2^53. */
  readonly seed: number;
  /** Alternatives to report per token; -1 reports no logprobs, 0 that of the chosen token only. */
  readonly logprobs: number;
  readonly frequencyPenalty: number;
  readonly presencePenalty: number;
  /** Added to the logits, by token id. */
  readonly logitBias: ReadonlyMap<number, number>;
  readonly stopTokenIds: readonly number[];
  /** Output tokens before a stop id may be chosen. */
  readonly minTokens: number;
  /** Output that the end of the prompt already holds: positions, penalties and minTokens count on from it. */
  readonly priorOutputIds: readonly number[];
}

export const GREEDY: Sampling = Object.freeze({
  temperature: 0,
  topP: 1,
  topK: 0,
  minP: 0,
  seed: 0,
  logprobs: -1,
  frequencyPenalty: 0,
  presencePenalty: 0,
  logitBias: new Map<number, number>(),
  stopTokenIds: [],
  minTokens: 0,
  priorOutputIds: [],
});

/** A sampled token. Logprobs are natural logarithms of the model's own distribution, before temperature. */
export interface SampledToken {
  readonly id: number;
  readonly logprob?: number;
  readonly top?: readonly { readonly id: number; readonly logprob: number }[];
}

export type FinishReason = 'stop' | 'length';
