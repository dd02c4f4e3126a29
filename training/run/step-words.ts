/** What a run says of a step: a bar of its steps, and the terms of its loss. */
import type { LossWeights } from '../step/pass.ts';

/** Cells of the bar. */
const CELLS = 20;

/** The share of the steps that are made, such as `█████░░░░░░░░░░░░░░░ 25 %`. */
export function bar(made: number, all: number): string {
  const full = Math.floor((CELLS * made) / all);
  return `${'█'.repeat(full)}${'░'.repeat(CELLS - full)} ${Math.floor((100 * made) / all)} %`;
}

/** Names of figures, what they are called, and the weight without which they are left out. */
const TERMS: readonly (readonly [figure: string, name: string, weight?: keyof LossWeights])[] = [
  ['ce', 'CE'],
  ['kl', 'KL', 'kl'],
  ['alignment', 'alignment', 'alignment'],
  ['distill', 'distillation', 'distill'],
  ['reinforce', 'REINFORCE', 'reinforce'],
  ['reward', 'reward', 'reinforce'],
  ['mse', 'mean square'],
  ['cosineDistance', '1 - cosine'],
];

/** The loss and the terms of it that have a weight, not weighted, such as `loss 2.6012, CE 2.8561, KL 0.1523`. */
export function lossWords(figures: Readonly<Record<string, number>>, weights: LossWeights): string {
  const terms = TERMS.filter(([figure, , weight]) => {
    return figures[figure] !== undefined && (weight === undefined || !!weights[weight]);
  });
  return [['loss', 'loss'] as const, ...terms]
    .map(([figure, name]) => `${name} ${figures[figure]!.toFixed(4)}`)
    .join(', ');
}
