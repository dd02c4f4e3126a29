/** The nouns that gateway, prefill and decode share: a prompt as token ids, how to sample, what comes out. */

/** A prompt as the workers see it: no text. */
export interface TokenPrompt {
  /** [length]; ids at soft positions are placeholders that the model never sees. */
  readonly ids: Int32Array;
  readonly soft: SoftTokens;
}

/** Projected chunk embeddings that replace input embeddings. */
export interface SoftTokens {
  /** [k], ascending positions in the prompt. */
  readonly positions: Int32Array;
  /** [k, hidden] */
  readonly vectors: Float32Array;
}

export const NO_SOFT_TOKENS: SoftTokens = { positions: new Int32Array(0), vectors: new Float32Array(0) };

/** How the next token is chosen. The draw for output position i depends on (seed, i) alone. */
export interface Sampling {
  /** 0 is greedy. */
  readonly temperature: number;
  readonly topP: number;
  /** 0 keeps all. */
  readonly topK: number;
  readonly minP: number;
  /** Whole number below 2^53. */
  readonly seed: number;
  /** Alternatives to report per token; -1 reports none, 0 the chosen token alone. */
  readonly logprobs: number;
  readonly frequencyPenalty: number;
  readonly presencePenalty: number;
  readonly logitBias: ReadonlyMap<number, number>;
  readonly stopTokenIds: readonly number[];
  /** Output tokens before a stop id may be chosen. */
  readonly minTokens: number;
  /** Output that stands at the end of the prompt already: positions, penalties and minTokens count on from it. */
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

/** The soft tokens of positions [past, end), relative to past. */
export function softWithin({ positions, vectors }: SoftTokens, past: number, end: number): SoftTokens {
  const first = positions.findIndex((position) => position >= past);
  if (first < 0) return { positions: new Int32Array(0), vectors: new Float32Array(0) };
  let last = first;
  while (last < positions.length && (positions[last] as number) < end) last++;
  const hidden = vectors.length / positions.length;
  return {
    positions: positions.slice(first, last).map((position) => position - past),
    vectors: vectors.subarray(first * hidden, last * hidden),
  };
}
