/** How well a projector does on samples that it was not trained on. */
import type { TeacherPass } from '../step/pass.ts';
import type { TrainableProjector } from '../step/projector.ts';
import type { EmbeddedSample } from '../step/trainer.ts';

/** Means over the samples. */
export interface Validation {
  readonly validCe: number;
  /**
   * Cosine between two soft tokens of a sample. Near 1 the projector has collapsed: it says the same of every chunk.
   */
  readonly meanCosine: number;
  /** The same between the embeddings. */
  readonly meanCosineOfEmbeddings: number;
}

/** @throws ServingError sample_invalid, training_diverged, runtime_failed; the signal's reason. */
export async function validate(
  samples: readonly EmbeddedSample[],
  projector: TrainableProjector,
  judge: TeacherPass,
  signal?: AbortSignal,
): Promise<Validation> {
  const sums = { validCe: 0, meanCosine: 0, meanCosineOfEmbeddings: 0 };
  for (const sample of samples) {
    const soft = await projector.project(sample.embeddings, signal);
    const rows = sample.softPositions.length;
    sums.validCe += (await judge.ce(sample, soft, signal)) / samples.length;
    sums.meanCosine += meanCosine(soft, rows) / samples.length;
    sums.meanCosineOfEmbeddings += meanCosine(sample.embeddings, rows) / samples.length;
  }
  return sums;
}

/** Mean cosine over all pairs of different rows; 1 for a single row. */
function meanCosine(vectors: Float32Array, rows: number): number {
  if (rows < 2) return 1;
  const width = vectors.length / rows;
  const units = Array.from({ length: rows }, (_, i) => {
    const row = vectors.subarray(i * width, (i + 1) * width);
    const length = Math.hypot(...row) || 1;
    return Float64Array.from(row, (value) => value / length);
  });
  let sum = 0;
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < i; j++) sum += units[i]!.reduce((dot, value, k) => dot + value * units[j]![k]!, 0);
  }
  return sum / ((rows * (rows - 1)) / 2);
}
