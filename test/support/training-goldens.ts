/** The reference values of projector training, and how far a result is from them. */
import { join } from 'node:path';
import { SafetensorsFile } from '../../services/lib/model/checkpoint/safetensors.ts';
import { openSourceNetwork } from '../../services/lib/model/checkpoint/source-network.ts';
import { type DecoderSpec, isDecoder } from '../../services/lib/model/checkpoint/spec.ts';
import { projectorShapes } from '../../services/lib/model/graph/projector.ts';
import type { EmbeddedSample } from '../../training/step/trainer.ts';
import { GOLDENS, readJsonFile } from './models.ts';

const TRAINING_GOLDENS = join(GOLDENS, 'training');
/** Relative L2 difference that a result in 32-bit floats may have from the reference, which was computed in 64. */
export const TOLERANCE = 1e-4;

interface GoldenSample {
  readonly soft_tokens: number;
  readonly prompt_ids: number[];
  readonly target_ids: number[];
  readonly teacher_text_ids: number[];
  readonly rollout_ids: number[];
  readonly reward: number;
  readonly greedy: Readonly<Record<string, { readonly ids: number[] }>>;
}
/** L2 norm, and the values at some flat indices. */
export interface Summary {
  readonly norm: number;
  readonly indices: number[];
  readonly values: number[];
}
type Summaries = Readonly<Record<string, Summary>>;
interface Reference {
  readonly terms: Readonly<Record<string, { readonly value: number; readonly gradients?: Summaries }>>;
  readonly composites: Readonly<
    Record<
      string,
      {
        readonly weights: Readonly<Record<string, number>>;
        readonly value_mean: number;
        readonly gradient_norm: number;
        readonly gradients: Summaries;
      }
    >
  >;
  readonly adamw: readonly AdamStep[];
  /** Steps with cross-entropy and alignment alone, of the projector of two layers. */
  readonly adamw_ce_align?: readonly AdamStep[];
}
interface AdamStep {
  readonly lr: number;
  readonly loss: number;
  readonly gradient_norm: number;
  readonly parameters?: Summaries;
}
export interface TrainingFacts {
  readonly samples: readonly GoldenSample[];
  readonly projector2: Reference;
  readonly projector3: Reference;
}

const zeros = (count: number) => new Array<number>(count).fill(0);
const upTo = (count: number) => Array.from({ length: count }, (_, i) => i);

export async function openTrainingGoldens() {
  const facts = await readJsonFile<TrainingFacts>(join(TRAINING_GOLDENS, 'expected.json'));
  const file = await SafetensorsFile.open(join(TRAINING_GOLDENS, 'expected.safetensors'));
  const network = await openSourceNetwork(TRAINING_GOLDENS);
  if (!isDecoder(network.spec)) throw new Error('the golden model is a decoder');
  const spec: DecoderSpec = network.spec;
  const samples: EmbeddedSample[] = [];
  for (const [i, { soft_tokens: k, prompt_ids, target_ids }] of facts.samples.entries()) {
    samples.push({
      name: `sample ${i}`,
      promptIds: [...zeros(k), ...prompt_ids],
      softPositions: upTo(k),
      targetIds: target_ids,
      embeddings: await file.read(`sample${i}.embeddings`),
    });
  }
  return {
    facts,
    spec,
    weights: network.weights,
    samples,
    tensor: (name: string) => file.read(name),
    /** The initial projector of 2 or 3 layers. */
    projector: async (layers: 2 | 3) => {
      const wide = 2 * spec.hidden;
      const widths = layers === 2 ? [48, spec.hidden, spec.hidden] : [48, wide, wide, spec.hidden];
      const parameters = new Map<string, Float32Array>();
      for (const name of projectorShapes({ widths }).keys()) {
        parameters.set(name, await file.read(`projector${layers}.${name}`));
      }
      return { widths, parameters, reference: facts[`projector${layers}`] };
    },
    close: async () => {
      await file.close();
      await network[Symbol.asyncDispose]();
    },
  };
}

/** L2 norm of the difference, relative to that of the wanted values. */
export function relativeError(found: ArrayLike<number>, wanted: ArrayLike<number>): number {
  if (found.length !== wanted.length) throw new Error(`${found.length} values against ${wanted.length}`);
  let difference = 0;
  let size = 0;
  for (let i = 0; i < wanted.length; i++) {
    difference += (found[i]! - wanted[i]!) ** 2;
    size += wanted[i]! ** 2;
  }
  return Math.sqrt(difference / (size || 1));
}

/** The larger error of the norm and of the values that the summary has. */
export function summaryError(found: Float32Array, { norm, indices, values }: Summary): number {
  const ofValues = relativeError(
    indices.map((i) => found[i]!),
    values,
  );
  return Math.max(ofValues, Math.abs(Math.hypot(...found) - norm) / norm);
}
