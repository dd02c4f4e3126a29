/** How well a projector does on samples that it was not trained on. */
import { z } from 'zod';
import type { Judge } from '../evaluate/judge.ts';
import type { TrainableProjector } from '../step/projector.ts';
import type { Sample } from '../step/rows.ts';
import type { EmbeddedSample } from '../step/trainer.ts';

/** Means over the samples; kept in checkpoints. */
export const validationSchema = z.object({
  /** Cross-entropy: mean over the target of -log p. */
  validCe: z.number(),
  /** Share of the samples whose greedy rollout has the target's tokens, from 0 to 1. */
  validEm: z.number(),
  /** Edit similarity of the rollouts to their targets, from 0 to 1. */
  validEs: z.number(),
  /**
   * Cosine between two soft tokens of a sample, over the samples that have two; 0 where none has. Near 1 the projector
   * has collapsed: it says the same of every chunk.
   */
  meanCosine: z.number(),
  /** The same between the embeddings. */
  meanCosineOfEmbeddings: z.number(),
});
export type Validation = z.infer<typeof validationSchema>;

/** Above this mean cosine all soft tokens of a prompt say nearly the same. */
const COLLAPSED = 0.98;

/** The alarm for a projector that has collapsed; undefined for one that has not. */
export function collapseAlarm({ meanCosine, meanCosineOfEmbeddings }: Validation): string | undefined {
  if (meanCosine <= COLLAPSED) return undefined;
  const remedy =
    meanCosineOfEmbeddings > COLLAPSED
      ? 'the embeddings do not differ either: choose another encoder or pooling, or chunks that differ'
      : 'raise --alignment, or use --alignment-form frobenius';
  return `the projector has collapsed: its soft tokens have a mean cosine of ${meanCosine.toFixed(3)}; ${remedy}`;
}

interface Judges {
  readonly projector: TrainableProjector;
  readonly judge: Judge;
  /** The text that should follow the prompt of a sample. */
  readonly targetOf: (sample: Sample) => string;
}

/** The same chunks before and after the projector, one row each, for pictures. */
export interface PicturedVectors {
  readonly embeddings: readonly Float32Array[];
  readonly soft: readonly Float32Array[];
}

/** As many as the paper's Figure 2 has. */
const PICTURED = 100;

/** The soft tokens that are pictured, as [sample, token]: the best chunk of each sample, then the second best … */
function pictured(samples: readonly EmbeddedSample[]): [sample: number, token: number][] {
  const found: [number, number][] = [];
  const most = Math.max(...samples.map(({ softPositions }) => softPositions.length));
  for (let token = 0; token < most; token++) {
    for (const [i, { softPositions }] of samples.entries()) {
      if (found.length === PICTURED) return found;
      if (token < softPositions.length) found.push([i, token]);
    }
  }
  return found;
}

/** Samples whose soft tokens are held at a time: more than decode together, so that none of the slots stays empty. */
const TOGETHER = 64;

/** @throws ServingError sample_invalid, training_diverged, runtime_failed; the signal's reason. */
export async function validate(
  samples: readonly EmbeddedSample[],
  { projector, judge, targetOf }: Judges,
  signal?: AbortSignal,
): Promise<{ validation: Validation; vectors: PicturedVectors }> {
  const shown = pictured(samples);
  const rowsOf = new Map<number, Float32Array>(); // by the place in `shown`
  const sums = { validCe: 0, validEm: 0, validEs: 0, meanCosine: 0, meanCosineOfEmbeddings: 0 };
  let several = 0; // samples with a pair of soft tokens
  for (let start = 0; start < samples.length; start += TOGETHER) {
    const part = samples.slice(start, start + TOGETHER);
    const soft: Float32Array[] = [];
    for (const sample of part) {
      const vectors = await projector.project(sample.embeddings, signal);
      const rows = sample.softPositions.length;
      sums.meanCosine += meanCosine(vectors, rows);
      sums.meanCosineOfEmbeddings += meanCosine(sample.embeddings, rows);
      if (rows > 1) several++;
      soft.push(vectors);
      for (const [at, [i, token]] of shown.entries()) {
        if (samples[i] === sample) rowsOf.set(at, rowOf(vectors, rows, token).slice());
      }
    }
    const questions = part.map((sample, i) => ({ sample, soft: soft[i]!, target: targetOf(sample) }));
    for (const { ce, authorsExactMatch, authorsEditSimilarity } of await judge.judge(questions, signal)) {
      sums.validCe += ce;
      sums.validEm += authorsExactMatch;
      sums.validEs += authorsEditSimilarity;
    }
  }
  const mean = (name: keyof Validation, count = samples.length) => sums[name] / (count || 1);
  const validation = {
    validCe: mean('validCe'),
    validEm: mean('validEm'),
    validEs: mean('validEs'),
    meanCosine: mean('meanCosine', several),
    meanCosineOfEmbeddings: mean('meanCosineOfEmbeddings', several),
  };
  const embeddings = shown.map(([i, token]) => {
    const { embeddings, softPositions } = samples[i]!;
    return rowOf(embeddings, softPositions.length, token);
  });
  return { validation, vectors: { embeddings, soft: shown.map((_, at) => rowsOf.get(at)!) } };
}

function rowOf(vectors: Float32Array, rows: number, row: number): Float32Array {
  const width = vectors.length / rows;
  return vectors.subarray(row * width, (row + 1) * width);
}

/** Mean cosine over all pairs of different rows; 0 for a single row. */
function meanCosine(vectors: Float32Array, rows: number): number {
  if (rows < 2) return 0;
  const units = Array.from({ length: rows }, (_, i) => {
    const row = rowOf(vectors, rows, i);
    const length = Math.hypot(...row) || 1;
    return Float64Array.from(row, (value) => value / length);
  });
  let sum = 0;
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < i; j++) sum += units[i]!.reduce((dot, value, k) => dot + value * units[j]![k]!, 0);
  }
  return sum / ((rows * (rows - 1)) / 2);
}
