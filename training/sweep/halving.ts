/**
 * Successive halving (Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization",
 * 2016): all trials are trained for a few steps, the best of them for more, and so on; every trial of a round has had
 * the same number of steps. Arithmetic alone.
 */
import { ServingError } from '../../services/lib/process/errors.ts';

export interface Round {
  /** Trials that are trained in it. */
  readonly trials: number;
  /** Steps that each has made at its end, from its first one on. */
  readonly steps: number;
}

/**
 * The rounds of a search. The last one trains with all steps.
 * @param factor by which the trials become fewer, and their steps more, from round to round
 * @param every steps between validations: a round ends with one
 * @throws ServingError config_invalid where the first round would have all steps already.
 */
export function roundsOf(trials: number, steps: number, factor: number, every: number): Round[] {
  const rounds: Round[] = [];
  for (let left = trials; ; left = Math.floor(left / factor)) {
    rounds.push({ trials: left, steps: 0 });
    if (left < factor) break;
  }
  const stepsIn = (round: number) => {
    const share = steps / factor ** (rounds.length - 1 - round);
    return Math.min(steps, every * Math.max(1, Math.round(share / every)));
  };
  const found = rounds.map((round, i) => ({ ...round, steps: i === rounds.length - 1 ? steps : stepsIn(i) }));
  const grows = found.every(({ steps }, i) => i === 0 || steps > found[i - 1]!.steps);
  if (grows) return found;
  const enough = every * factor ** (rounds.length - 1);
  const why = `--steps ${steps} are too few for ${rounds.length} rounds that each end with a validation`;
  const remedy = `with --trials ${trials} and --factor ${factor} give ${enough} steps at least, or a smaller --every`;
  throw new ServingError('config_invalid', `${why}: ${remedy}`);
}

/** Steps of all rounds together: each trial goes on from where it stands. */
export const budgetOf = (rounds: readonly Round[]): number =>
  rounds.reduce((sum, { trials, steps }, i) => sum + trials * (steps - (rounds[i - 1]?.steps ?? 0)), 0);
