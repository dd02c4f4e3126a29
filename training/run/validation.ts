/** How well a projector does on samples that it was not trained on. */
import { z } from 'zod';
import { type Judge, QUESTIONS, type Question } from '../evaluate/judge.ts';
import type { PicturedVectors } from '../report/page.ts';
import type { TrainableProjector } from '../step/projector.ts';
import type { Sample } from '../step/rows.ts';
import type { EmbeddedSample } from '../step/trainer.ts';
import { CosineMeter, cosinesSchema } from './collapse.ts';

/** Means over the samples; kept in checkpoints. */
export const validationSchema = z.object({
  /** Cross-entropy: mean over the target of -log p. */
  validCe: z.number(),
  /** Share of the samples whose greedy rollout has the target's tokens, from 0 to 1. */
  validEm: z.number(),
  /** Edit similarity of the rollouts to their targets, from 0 to 1. */
  validEs: z.number(),
  ...cosinesSchema.shape,
});
export type Validation = z.infer<typeof validationSchema>;

/**
 * So many of the rows of a validation, evenly spaced: rows of one repository follow each other, so these are
 * spread over the repositories. The same whatever the seed, so that runs can be compared.
 * @param most undefined for all
 */
export function spaced<T>(rows: readonly T[], most: number | undefined): readonly T[] {
  if (most === undefined || rows.length <= most) return rows;
  return Array.from({ length: most }, (_, i) => rows[Math.floor((i * rows.length) / most)]!);
}

interface Judges {
  readonly projector: TrainableProjector;
  readonly judge: Judge;
  /** The text that should follow the prompt of a sample. */
  readonly targetOf: (sample: Sample) => string;
}

/** @throws ServingError sample_invalid, training_diverged, runtime_failed; the signal's reason. */
export async function validate(
  samples: readonly EmbeddedSample[],
  { projector, judge, targetOf }: Judges,
  signal?: AbortSignal,
): Promise<{ validation: Validation; vectors: PicturedVectors }> {
  const meter = new CosineMeter(samples);
  const sums = { validCe: 0, validEm: 0, validEs: 0 };
  for (let start = 0; start < samples.length; start += QUESTIONS) {
    const questions: Question[] = [];
    for (let i = start; i < Math.min(start + QUESTIONS, samples.length); i++) {
      const sample = samples[i]!;
      questions.push({ sample, soft: await meter.project(i, projector, signal), target: targetOf(sample) });
    }
    for (const { ce, authorsExactMatch, authorsEditSimilarity } of await judge.judge(questions, signal)) {
      sums.validCe += ce;
      sums.validEm += authorsExactMatch;
      sums.validEs += authorsEditSimilarity;
    }
  }
  const mean = (name: keyof typeof sums) => sums[name] / (samples.length || 1);
  const validation = {
    validCe: mean('validCe'),
    validEm: mean('validEm'),
    validEs: mean('validEs'),
    ...meter.cosines,
  };
  return { validation, vectors: meter.vectors('the validation') };
}
