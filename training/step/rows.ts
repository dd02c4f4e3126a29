/**
 * The rows of one pass through the language model: the prompt with places for its soft tokens, then the target, then
 * the rollout. A rollout continues the prompt as the target does, so it has the target's positions and does not see it.
 *
 *   prompt p₀ … pₙ₋₁ │ target t₀ … │ rollout r₀ …
 *   position 0 … n-1 │ n …         │ n …
 *
 * The prompt's last row scores the first token of both.
 */

/** A prompt and what should follow it, as token ids. */
export interface Sample {
  /** Name of the sample in messages: file and line. */
  readonly name: string;
  /** Ids of the prompt; at the places of soft tokens they have no effect. */
  readonly promptIds: readonly number[];
  /** Places of the soft tokens in the prompt, one for each row of the embeddings. */
  readonly softPositions: readonly number[];
  readonly targetIds: readonly number[];
}

/** What the model wrote by itself, and what that was worth. */
export interface Rollout {
  readonly ids: readonly number[];
  /** Its tokens' log-probabilities are weighted by this; negative where a baseline was better. */
  readonly reward: number;
  /** What it was worth before a baseline was subtracted, for reports; the reward where not given. */
  readonly worth?: number;
}

interface Rows {
  readonly ids: readonly number[];
  /** The rows that are scored, first those of the target, then those of the rollout; and what they should predict. */
  readonly scored: readonly number[];
  readonly targets: readonly number[];
  readonly positions: readonly number[];
}

/** The rows of a sample with its rollout; of the sample alone where the rollout is empty. */
export function layOut({ promptIds, targetIds }: Sample, rolloutIds: readonly number[]): Rows {
  const prompt = promptIds.length;
  const target = targetIds.length;
  const from = (start: number, count: number) => Array.from({ length: count }, (_, i) => start + i);
  return {
    ids: [...promptIds, ...targetIds, ...rolloutIds],
    scored: [
      ...from(prompt - 1, target),
      ...rolloutIds.map((_, i) => (i === 0 ? prompt - 1 : prompt + target + i - 1)),
    ],
    targets: [...targetIds, ...rolloutIds],
    positions: [...from(0, prompt + target), ...from(prompt, rolloutIds.length)],
  };
}

/** Added to the scores of what a row must not see. */
const HIDDEN = -1e30;

/** [sequence, sequence], added to the scores of attention: hides the target from the rollout. */
export function attentionBias({ promptIds, targetIds }: Sample, rolloutIds: readonly number[]): Float32Array {
  const start = promptIds.length;
  const end = start + targetIds.length;
  const sequence = end + rolloutIds.length;
  const bias = new Float32Array(sequence * sequence);
  for (let row = end; row < sequence; row++) bias.fill(HIDDEN, row * sequence + start, row * sequence + end);
  return bias;
}
