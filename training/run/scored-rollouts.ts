/** Rollouts with their rewards, for the steps of a run. */
import { wordsAt } from '../../services/lib/numeric/random.ts';
import { GREEDY } from '../../services/lib/request/next-token.ts';
import type { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import type { BASELINES } from '../choices.ts';
import { type LineScores, rolloutScores } from '../metrics/lines.ts';
import { drawing, type Rollouts } from '../step/rollouts.ts';
import type { Rollout, Sample } from '../step/rows.ts';

/** What a rollout is worth: weights of its exact match and its edit similarity. */
export interface RewardWeights {
  readonly em: number;
  readonly es: number;
}

interface ScoringSettings {
  readonly reward: RewardWeights;
  readonly baseline: (typeof BASELINES)[number];
  readonly seed: number;
}

type Samples = readonly Sample[];
type SoftTokens = readonly Float32Array[];

/** The seed of a drawn rollout, below 2^53: each place of each step has its own. */
function seedAt(seed: number, place: number): number {
  const words = wordsAt(seed, place);
  return words[2] + (words[3] % 2 ** 21) * 2 ** 32; // the order of the samples has the first two words
}

/** Rollouts that are compared with their targets. */
export class ScoredRollouts {
  readonly #rollouts: Rollouts;
  readonly #tokenizer: Tokenizer;
  readonly #stopIds: ReadonlySet<number>;
  readonly #targetOf: (sample: Sample) => string;
  readonly #settings: ScoringSettings;

  constructor(
    rollouts: Rollouts,
    tokenizer: Tokenizer,
    stopIds: ReadonlySet<number>,
    targetOf: (sample: Sample) => string,
    settings: ScoringSettings,
  ) {
    this.#rollouts = rollouts;
    this.#tokenizer = tokenizer;
    this.#stopIds = stopIds;
    this.#targetOf = targetOf;
    this.#settings = settings;
  }

  /**
   * Rollouts with their rewards for one step. Without a baseline they are greedy. With `scst` they are drawn, and the
   * greedy one's reward is the baseline: what is better than it becomes likelier, what is worse less likely (Rennie et
   * al., "Self-critical sequence training", CVPR 2017).
   * Of the slots only as many are computed as a step has samples: a validation may have more, and needs more slots.
   * @param step the number of steps before this one
   * @throws as {@link Rollouts.all}.
   */
  async rollOut(samples: Samples, soft: SoftTokens, step: number, signal?: AbortSignal): Promise<Rollout[]> {
    const { baseline, seed } = this.#settings;
    if (baseline === 'none') {
      const greedy = await this.#rollouts.greedy(samples, soft, signal, samples.length);
      return greedy.map((ids, i) => ({ ids, reward: this.#worth(ids, samples[i]!) }));
    }
    const prompts = samples.map((sample, i) => {
      const samplings = [GREEDY, drawing(seedAt(seed, step * samples.length + i))];
      return { sample, soft: soft[i]!, samplings };
    });
    const found = await this.#rollouts.all(prompts, signal, samples.length);
    return found.map(([greedy, drawn], i) => {
      const worth = this.#worth(drawn!, samples[i]!);
      return { ids: drawn!, worth, reward: worth - this.#worth(greedy!, samples[i]!) };
    });
  }

  #worth(ids: readonly number[], sample: Sample): number {
    const { em, es } = this.#settings.reward;
    const { exactMatch, editSimilarity } = this.#score(ids, sample);
    return em * exactMatch + es * editSimilarity;
  }

  #score(ids: readonly number[], sample: Sample): LineScores {
    const text = this.#tokenizer.decode(ids.filter((id) => !this.#stopIds.has(id)));
    return rolloutScores(text, this.#targetOf(sample));
  }
}
