/**
 * Whether a projector keeps chunks apart: the cosines between the soft tokens of a sample, beside those between their
 * embeddings, and the alarm for one that does not. They are measured where a run validates, and without a validation on
 * some of the samples that it trains on.
 */
import { z } from 'zod';
import { ServingError } from '../../services/lib/process/errors.ts';
import { meanCosine } from '../metrics/cosines.ts';
import type { PicturedVectors } from '../report/page.ts';
import type { TrainableProjector } from '../step/projector.ts';
import type { EmbeddedSample } from '../step/trainer.ts';

export const cosinesSchema = z.object({
  /**
   * Cosine between two soft tokens of a sample, over the samples that have two; null where none has. Near 1 the
   * projector has collapsed: it says the same of every chunk.
   */
  meanCosine: z.number().nullable(),
  /** The same between the embeddings. */
  meanCosineOfEmbeddings: z.number().nullable(),
});
export type Cosines = z.infer<typeof cosinesSchema>;

/** Above this mean cosine all soft tokens of a prompt say nearly the same. */
const COLLAPSED = 0.98;

/** The alarm for a projector that has collapsed; undefined for one that has not, or where that was not measured. */
export function collapseAlarm({ meanCosine, meanCosineOfEmbeddings }: Cosines): string | undefined {
  if (meanCosine === null || meanCosine <= COLLAPSED) return undefined;
  const remedy =
    meanCosineOfEmbeddings !== null && meanCosineOfEmbeddings > COLLAPSED
      ? 'the embeddings do not differ either: choose another encoder or pooling, or chunks that differ'
      : 'raise --alignment, or use --alignment-form frobenius';
  return `the projector has collapsed: its soft tokens have a mean cosine of ${meanCosine.toFixed(3)}; ${remedy}`;
}

/** The mean cosine in words. */
export const cosineWords = ({ meanCosine }: Cosines) =>
  meanCosine === null
    ? 'mean cosine not measured: no sample has two soft tokens'
    : `mean cosine ${meanCosine.toFixed(3)}`;

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
    const mean = (name: keyof Cosines) => (this.#several === 0 ? null : this.#sums[name] / this.#several);
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

/** Training samples by which a run without a validation finds out whether its projector has collapsed. */
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
