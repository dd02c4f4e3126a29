/**
 * The regression of the projection on memory tokens: each step brings the soft tokens of a batch of chunks nearer to
 * their memory tokens, by the sum of mean squared error and 1 - cosine.
 */
import { ServingError } from '../../services/lib/process/errors.ts';
import { ADAM_DEFAULTS, type AdamState, AdamW, clip } from '../step/optimizer.ts';
import type { TrainableProjector } from '../step/projector.ts';

/** A chunk: its embedding [encoder dim], and the vector [hidden] that its soft token should become. */
export interface Wanted {
  /** For messages. */
  readonly name: string;
  readonly embedding: Float32Array;
  readonly memory: Float32Array;
}

/** Means over the batch, not weighted; `loss` is their sum. */
export type RegressionReport = {
  readonly loss: number;
  /** Mean over the values of the squared difference. */
  readonly mse: number;
  /** 1 - cosine. */
  readonly cosineDistance: number;
  /** Soft tokens that were projected. */
  readonly tokens: number;
  /** L2 norm of all gradients together, before it was clipped. */
  readonly gradientNorm: number;
};

/** Both losses of one soft token, and the gradient of their sum at it. A vector of zeros has a cosine of 0. */
export function distance(soft: Float32Array, memory: Float32Array) {
  let [dot, ofSoft, ofMemory, squares] = [0, 0, 0, 0];
  for (let i = 0; i < soft.length; i++) {
    dot += soft[i]! * memory[i]!;
    ofSoft += soft[i]! ** 2;
    ofMemory += memory[i]! ** 2;
    squares += (soft[i]! - memory[i]!) ** 2;
  }
  const norms = Math.sqrt(ofSoft * ofMemory);
  const cosine = norms === 0 ? 0 : dot / norms;
  const gradient = soft.map((value, i) => {
    const ofSquares = (2 * (value - memory[i]!)) / soft.length;
    return norms === 0 ? ofSquares : ofSquares - memory[i]! / norms + (cosine * value) / ofSoft;
  });
  return { mse: squares / soft.length, cosineDistance: 1 - cosine, gradient };
}

export class Regression {
  readonly #projector: TrainableProjector;
  readonly #clipNorm: number;
  readonly #adam: AdamW;

  /** @param state of the optimiser, to go on with an earlier run */
  constructor(
    projector: TrainableProjector,
    { clipNorm, weightDecay }: { readonly clipNorm: number; readonly weightDecay: number },
    state?: AdamState,
  ) {
    this.#projector = projector;
    this.#clipNorm = clipNorm;
    this.#adam = new AdamW(projector.parameters, { ...ADAM_DEFAULTS, weightDecay }, state);
  }

  get optimizerState(): AdamState {
    return this.#adam.state;
  }

  /**
   * Changes the projector's parameters once, for the mean over the batch.
   * @throws ServingError training_diverged, runtime_failed; the signal's reason.
   */
  async step(batch: readonly Wanted[], learningRate: number, signal?: AbortSignal): Promise<RegressionReport> {
    const { embedding: first, memory } = batch[0]!;
    const hidden = memory.length;
    const embeddings = new Float32Array(batch.length * first.length);
    for (const [i, { embedding }] of batch.entries()) embeddings.set(embedding, i * first.length);
    const soft = await this.#projector.project(embeddings, signal);
    const softGradient = new Float32Array(soft.length);
    let [mse, cosineDistance] = [0, 0];
    for (const [i, wanted] of batch.entries()) {
      const found = distance(soft.subarray(i * hidden, (i + 1) * hidden), wanted.memory);
      if (!Number.isFinite(found.mse + found.cosineDistance)) {
        const losses = `mean square ${found.mse}, 1 - cosine ${found.cosineDistance}`;
        throw new ServingError('training_diverged', `${wanted.name}: its distance to its memory token is ${losses}`);
      }
      mse += found.mse / batch.length;
      cosineDistance += found.cosineDistance / batch.length;
      softGradient.set(
        found.gradient.map((value) => value / batch.length),
        i * hidden,
      );
    }
    const { gradients } = await this.#projector.backward(1, embeddings, softGradient, 0, signal);
    const gradientNorm = clip(gradients, this.#clipNorm);
    if (!Number.isFinite(gradientNorm)) {
      const names = batch.map(({ name }) => name).join('; ');
      throw new ServingError('training_diverged', `${names}: the norm of the gradient is ${gradientNorm}`);
    }
    this.#adam.step(gradients, learningRate);
    return { loss: mse + cosineDistance, mse, cosineDistance, tokens: batch.length, gradientNorm };
  }
}
