/** A prompt as the workers see it: token ids, some of them replaced by vectors. It holds no text. */

export interface TokenPrompt {
  /** `[length]`; ids at soft positions are placeholders that the model never sees. */
  readonly ids: Int32Array;
  readonly soft: SoftTokens;
}

/** Projected embeddings of repository chunks, each in the place of one token's input embedding. */
export interface SoftTokens {
  /** `[count]`, ascending positions in the prompt. */
  readonly positions: Int32Array;
  /** `[count, hidden]` */
  readonly vectors: Float32Array;
}

export const NO_SOFT_TOKENS: SoftTokens = { positions: new Int32Array(0), vectors: new Float32Array(0) };

/** The soft tokens of prompt positions [past, end), with their positions counted from `past`. */
export function softWithin({ positions, vectors }: SoftTokens, past: number, end: number): SoftTokens {
  const first = positions.findIndex((position) => position >= past);
  if (first < 0) return NO_SOFT_TOKENS;
  let last = first;
  while (last < positions.length && (positions[last] as number) < end) last++;
  const hidden = vectors.length / positions.length;
  return {
    positions: positions.slice(first, last).map((position) => position - past),
    vectors: vectors.subarray(first * hidden, last * hidden),
  };
}
