/**
 * The rows of one pass through the language model: the prompt with places for its soft tokens, then the target, then
 * other continuations of the prompt: the rollout, and what the text arm wrote. Each continues the prompt as the target
 * does, so it has the target's positions and does not see the others.
 *
 *   prompt p₀ … pₙ₋₁ │ target t₀ … │ rollout r₀ … │ distilled d₀ …
 *   position 0 … n-1 │ n …         │ n …          │ n …
 *
 * The prompt's last row scores the first token of each.
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
  /** What the model writes where it reads the chunks as text, for distillation. */
  readonly distilledIds?: readonly number[];
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
  /** The rows that are scored, those of the target first, and what they should predict. */
  readonly scored: readonly number[];
  readonly targets: readonly number[];
  readonly positions: readonly number[];
}

type Ids = readonly number[];

/** The rows of a sample with other continuations of its prompt; empty ones have no rows. */
export function layOut({ promptIds, targetIds }: Sample, ...others: readonly Ids[]): Rows {
  const prompt = promptIds.length;
  const scored: number[] = [];
  const positions = promptIds.map((_, i) => i);
  for (const continuation of [targetIds, ...others]) {
    const start = positions.length;
    for (const i of continuation.keys()) {
      scored.push(i === 0 ? prompt - 1 : start + i - 1);
      positions.push(prompt + i);
    }
  }
  const targets = [...targetIds, ...others.flat()];
  return { ids: [...promptIds, ...targets], scored, targets, positions };
}

/** Added to the scores of what a row must not see. */
const HIDDEN = -1e30;

/** [sequence, sequence], added to the scores of attention: hides the continuations from each other. */
export function attentionBias({ promptIds, targetIds }: Sample, ...others: readonly Ids[]): Float32Array {
  const prompt = promptIds.length;
  const sequence = prompt + targetIds.length + others.flat().length;
  const bias = new Float32Array(sequence * sequence);
  let start = prompt + targetIds.length;
  for (const { length } of others) {
    for (let row = start; row < start + length; row++)
      bias.fill(HIDDEN, row * sequence + prompt, row * sequence + start);
    start += length;
  }
  return bias;
}
