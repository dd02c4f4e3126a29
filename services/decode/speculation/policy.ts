/**
 * How many tokens to propose, by what it costs and what it is likely to bring. A verify run of r rows gives at least
 * one token and at most r; it is worth its time if it gives more tokens per ms than steps of one token do.
 *
 * Likelihoods are learned: for each source and length of match, the share of proposed tokens that were accepted. What
 * is not known yet has to be tried, and trying may cost. So there is an account: each token is worth what a step takes,
 * and a little more, and a run is allowed only if the account can pay for the worst case, one token. Whatever the texts
 * are, all runs together therefore never take longer than steps would have taken, divided by {@link WORST_SPEED}.
 */
import { DRAFT_SOURCES, type Draft, type DraftSource } from './draft-index.ts';

/** Speed beside decoding step by step that is kept on any text. */
export const WORST_SPEED = 0.98;
/** A run must promise so many times the tokens per ms of steps: estimates are noisy. */
const LEAST_GAIN = 1.03;
/** The account holds at most the time of so many steps, so that a long good time does not pay for a long bad one. */
const MOST_CREDIT_STEPS = 200;
/** Matches of so many tokens and more are told apart: 0 is the beginning of a prediction. */
const MATCHES = [0, 1, 2, 4, 8, 16] as const;
/** Expected acceptance before anything is known, by match. */
const PRIORS = [0.7, 0.3, 0.5, 0.7, 0.85, 0.9] as const;
/** Weight of the expectation, in proposed tokens; and of all that is remembered. */
const PRIOR_WEIGHT = 4;
const MEMORY = 64;

/** What runs of the engine cost. */
export interface RunTimes {
  /** Rows of the runs that there are, ascending, 1 for a step. */
  readonly rows: readonly number[];
  /** Time of a run, in ms. */
  costMs(rows: number): number;
}

/** The share of proposed tokens that was accepted lately. */
class Rate {
  #accepted: number;
  #tried = PRIOR_WEIGHT;

  constructor(prior: number) {
    this.#accepted = prior * PRIOR_WEIGHT;
  }

  get value(): number {
    return this.#accepted / this.#tried;
  }

  add(accepted: boolean): void {
    const fade = this.#tried >= MEMORY ? (MEMORY - 1) / MEMORY : 1;
    this.#accepted = this.#accepted * fade + (accepted ? 1 : 0);
    this.#tried = this.#tried * fade + 1;
  }
}

export class SpeculationPolicy {
  readonly #times: RunTimes;
  readonly #rates: ReadonlyMap<DraftSource, readonly Rate[]>;
  #creditMs = 0;

  constructor(times: RunTimes) {
    this.#times = times;
    this.#rates = new Map(DRAFT_SOURCES.map((source) => [source, PRIORS.map((prior) => new Rate(prior))]));
  }

  /** How many tokens of a draft to verify; 0 for a step without any. */
  choose({ source, matched, ids }: Draft): number {
    const stepMs = this.#times.costMs(1);
    let best = 0;
    let bestRate = LEAST_GAIN / stepMs;
    let [expected, likely, counted] = [1, 1, 0];
    for (const rows of this.#times.rows) {
      const drafts = rows - 1;
      if (drafts === 0 || drafts > ids.length) continue;
      for (; counted < drafts; counted++) {
        likely *= this.#rateOf(source, matched + counted).value;
        expected += likely;
      }
      const runMs = this.#times.costMs(rows);
      if (this.#creditMs + stepMs / WORST_SPEED < runMs) continue;
      if (expected / runMs <= bestRate) continue;
      best = drafts;
      bestRate = expected / runMs;
    }
    return best;
  }

  /** A step of one sequence alone was made without a draft. */
  stepped(): void {
    this.#account(1, this.#times.costMs(1));
  }

  /**
   * A draft was verified.
   * @param drafts tokens of it that were proposed, of which the first `accepted` were right.
   * @param tokens that the run has given.
   */
  verified({ source, matched }: Pick<Draft, 'source' | 'matched'>, drafts: number, accepted: number, tokens: number) {
    for (let i = 0; i < Math.min(accepted + 1, drafts); i++) this.#rateOf(source, matched + i).add(i < accepted);
    this.#account(tokens, this.#times.costMs(drafts + 1));
  }

  #account(tokens: number, ms: number): void {
    const stepMs = this.#times.costMs(1);
    this.#creditMs = Math.min(this.#creditMs + (tokens * stepMs) / WORST_SPEED - ms, MOST_CREDIT_STEPS * stepMs);
  }

  #rateOf(source: DraftSource, matched: number): Rate {
    const rates = this.#rates.get(source)!;
    return rates[MATCHES.findLastIndex((least) => least <= matched)]!;
  }
}
