/**
 * How well the gradient through quantised frozen weights, or on a device, agrees with that through 32-bit floats on the
 * CPU, on a few samples of the run. A model with outlying activations may lose more than those on which the formats
 * were chosen.
 */
import { type LossWeights, ModelPass, type ModelPlace } from '../step/pass.ts';
import type { TrainableProjector } from '../step/projector.ts';
import type { EmbeddedSample } from '../step/trainer.ts';

/** Below this mean cosine a run is warned. Formats of 8 bits had 0.9991 on tiny-coder, those of 4 bits 0.983. */
export const LEAST_COSINE = 0.99;

/**
 * The mean over the samples of the cosine between both gradients of cross-entropy at the soft tokens. The model is
 * loaded twice, one after the other.
 * @param place of the quantised model
 * @throws ServingError as ModelPass; the signal's reason.
 */
export async function gradientCosine(
  place: ModelPlace,
  projector: TrainableProjector,
  samples: readonly EmbeddedSample[],
  signal?: AbortSignal,
): Promise<number> {
  const alone: ModelPlace = { ...place, workers: 1, shared: undefined }; // its weights go when it is disposed of
  const floats: ModelPlace = {
    ...alone,
    layers: 'fp32',
    backwardLayers: 'fp32',
    packWeights: false,
    device: undefined,
  };
  const [quantised, exact] = [
    await gradients(alone, projector, samples, signal),
    await gradients(floats, projector, samples, signal),
  ];
  return quantised.reduce((sum, gradient, i) => sum + cosine(gradient, exact[i]!) / samples.length, 0);
}

const CROSS_ENTROPY: LossWeights = { ce: 1, reinforce: 0, kl: 0, alignment: 0 };

async function gradients(
  place: ModelPlace,
  projector: TrainableProjector,
  samples: readonly EmbeddedSample[],
  signal?: AbortSignal,
): Promise<Float32Array[]> {
  const model = await ModelPass.load(place, CROSS_ENTROPY, signal);
  try {
    const found: Float32Array[] = [];
    for (const sample of samples) {
      const soft = await projector.project(sample.embeddings, signal);
      found.push((await model.run(sample, soft, 1, {}, signal)).gradient);
    }
    return found;
  } finally {
    model.dispose();
  }
}

/** 0 where one of them is 0. */
function cosine(a: Float32Array, b: Float32Array): number {
  let [dot, ofA, ofB] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    dot += a[i]! * b[i]!;
    ofA += a[i]! ** 2;
    ofB += b[i]! ** 2;
  }
  return dot / (Math.sqrt(ofA * ofB) || 1);
}
