/**
 * Whether a projector keeps chunks apart: the cosines between the soft tokens of a sample, beside those between their
 * embeddings, and the alarm for one that does not. They are measured where a run validates, and without a validation on
 * some of the samples that it trains on.
 */
import { z } from 'zod';
import { ServingError } from '../../services/lib/process/errors.ts';
import { meanCosine } from '../metrics/cosines.ts';
import type { TrainableProjector } from '../step/projector.ts';
import type { EmbeddedSample } from '../step/trainer.ts';

export const cosinesSchema = z.object({
  /**
   * Cosine between two soft tokens of a sample, over the samples that have two; 0 where none has. Near 1 the projector
   * has collapsed: it says the same of every chunk.
   */
  meanCosine: z.number(),
  /** The same between the embeddings. */
  meanCosineOfEmbeddings: z.number(),
});
export type Cosines = z.infer<typeof cosinesSchema>;

/** Above this mean cosine all soft tokens of a prompt say nearly the same. */
const COLLAPSED = 0.98;

/** The alarm for a projector that has collapsed; undefined for one that has not. */
export function collapseAlarm({ meanCosine, meanCosineOfEmbeddings }: Cosines): string | undefined {
  if (meanCosine <= COLLAPSED) return undefined;
  const remedy =
    meanCosineOfEmbeddings > COLLAPSED
      ? 'the embeddings do not differ either: choose another encoder or pooling, or chunks that differ'
      : 'raise --alignment, or use --alignment-form frobenius';
  return `the projector has collapsed: its soft tokens have a mean cosine of ${meanCosine.toFixed(3)}; ${remedy}`;
}

/** The same chunks before and after the projector, one row each, for pictures. */
export interface PicturedVectors {
  readonly embeddings: readonly Float32Array[];
  readonly soft: readonly Float32Array[];
  /** Of what they are chunks, in words. */
  readonly of: string;
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

/** Projects samples in their order, and counts how alike their soft tokens are. */
export class CosineMeter {
  readonly #samples: readonly EmbeddedSample[];
  readonly #shown: readonly [sample: number, token: number][];
  /** By the place in `shown`. */
  readonly #rows = new Map<number, Float32Array>();
  readonly #sums = { meanCosine: 0, meanCosineOfEmbeddings: 0 };
  /** Samples with a pair of soft tokens. */
  #several = 0;

  constructor(samples: readonly EmbeddedSample[]) {
    this.#samples = samples;
    this.#shown = pictured(samples);
  }

  /**
   * @param index of the sample
   * @returns its soft tokens, [soft, hidden]
   * @throws ServingError training_diverged where one of their values is not finite; runtime_failed; the signal's
   *   reason.
   */
  async project(index: number, projector: TrainableProjector, signal?: AbortSignal): Promise<Float32Array> {
    const { name, embeddings, softPositions } = this.#samples[index]!;
    const soft = await projector.project(embeddings, signal);
    const broken = soft.find((value) => !Number.isFinite(value));
    if (broken !== undefined) throw new ServingError('training_diverged', `${name}: a soft token holds ${broken}`);
    const rows = softPositions.length;
    this.#sums.meanCosine += meanCosine(soft, rows);
    this.#sums.meanCosineOfEmbeddings += meanCosine(embeddings, rows);
    if (rows > 1) this.#several++;
    for (const [at, [i, token]] of this.#shown.entries()) {
      if (i === index) this.#rows.set(at, rowOf(soft, rows, token).slice());
    }
    return soft;
  }

  get cosines(): Cosines {
    const mean = (name: keyof Cosines) => this.#sums[name] / (this.#several || 1);
    return { meanCosine: mean('meanCosine'), meanCosineOfEmbeddings: mean('meanCosineOfEmbeddings') };
  }

  /** @param of what the samples are, in words */
  vectors(of: string): PicturedVectors {
    const embeddings = this.#shown.map(([i, token]) => {
      const { embeddings, softPositions } = this.#samples[i]!;
      return rowOf(embeddings, softPositions.length, token);
    });
    return { embeddings, soft: this.#shown.map((_, at) => this.#rows.get(at)!), of };
  }
}

/** Samples that are trained on on which a run without a validation looks whether its projector has collapsed. */
export const WATCHED_SAMPLES = 64;

/** Cosines of samples that are trained on. @throws as {@link CosineMeter.project}. */
export async function watch(
  samples: readonly EmbeddedSample[],
  projector: TrainableProjector,
  signal?: AbortSignal,
): Promise<{ readonly cosines: Cosines; readonly vectors: PicturedVectors }> {
  const meter = new CosineMeter(samples);
  for (const i of samples.keys()) await meter.project(i, projector, signal);
  return { cosines: meter.cosines, vectors: meter.vectors('samples that are trained on') };
}

function rowOf(vectors: Float32Array, rows: number, row: number): Float32Array {
  const width = vectors.length / rows;
  return vectors.subarray(row * width, (row + 1) * width);
}
