/**
 * The trainable projector: its parameters, and the two graphs that compute with them. The backward pass runs once for
 * all samples of a batch that have the same number of soft tokens, so gradients accumulate within the graph.
 */
import { createHash } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import type { OrtSession, Tensor } from '../../services/lib/engine/ort.ts';
import { expectTensor, type TensorSource } from '../../services/lib/model/checkpoint/checkpoint.ts';
import type { DecoderSpec } from '../../services/lib/model/checkpoint/spec.ts';
import {
  openProjector,
  type ProjectorSpec,
  projectorShapes,
  readProjector,
  readProjectorSpec,
} from '../../services/lib/model/graph/projector.ts';
import {
  type AlignmentForm,
  buildProjectorTraining,
  buildTrainableProjector,
} from '../../services/lib/model/graph/projector-training.ts';
import { tensorPrefix } from '../../services/lib/model/graph/transformer.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { gaussians } from './gaussians.ts';
import { openGraph, type SessionPlace } from './graph-session.ts';
import { float32, type Tensors } from './tensors.ts';

/** Standard deviation of a new projector's matrices before the last, as the authors' code draws them. */
const INITIAL_DEVIATION = 0.02;

/**
 * The parameters of a new projector: matrices of normal random numbers, biases of 0, norms that scale by 1. The same
 * seed gives the same bits.
 *
 * The last layer reads what a norm gives, of root mean square 1, in `width` values. With numbers of the deviation
 * scale / √width its output has the root mean square `scale`: soft tokens begin as long as the language model's own
 * embeddings. The authors' 0.02 makes them five times as long for SmolLM2-135M.
 * @param scale root mean square of the values of a soft token; see {@link tableScale}
 */
export function initialParameters(spec: ProjectorSpec, scale: number, seed: number): Tensors {
  const parameters = new Map<string, Float32Array>();
  const last = `linear_${spec.widths.length - 1}.weight`;
  const ofLast = scale / Math.sqrt(spec.widths.at(-2)!);
  let drawn = 0;
  for (const [name, shape] of projectorShapes(spec)) {
    const count = shape.reduce((product, size) => product * size, 1);
    if (/^linear_\d+\.weight$/.test(name)) {
      parameters.set(name, gaussians(seed, drawn, count, name === last ? ofLast : INITIAL_DEVIATION));
      drawn += count;
    } else parameters.set(name, new Float32Array(count).fill(/^ln_\d+\.weight$/.test(name) ? 1 : 0));
  }
  return parameters;
}

/**
 * Root mean square of the values in a language model's table of embeddings.
 * @throws ServingError checkpoint_invalid
 */
export const tableScale = async (spec: DecoderSpec, weights: TensorSource): Promise<number> =>
  rootMeanSquare(await embeddingTable(spec, weights));

/** A language model's table of embeddings: [vocab, hidden]. @throws ServingError checkpoint_invalid */
export const embeddingTable = ({ vocab, hidden }: DecoderSpec, weights: TensorSource): Promise<Float32Array> =>
  expectTensor(weights, `${tensorPrefix(weights)}embed_tokens.weight`, [vocab, hidden])();

export const rootMeanSquare = (values: Float32Array): number =>
  Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);

/**
 * The parameters of a projector that was trained before, and their SHA-256 in hex.
 * @param path as `llavacode export --projector` takes it
 * @throws ServingError checkpoint_invalid, projector_invalid; config_invalid for one of other widths.
 */
export async function readParameters(
  path: string,
  { widths }: ProjectorSpec,
): Promise<{ readonly parameters: Tensors; readonly digest: string }> {
  await using source = await openProjector(path);
  const found = readProjectorSpec(source);
  if (!isDeepStrictEqual(found.widths, widths)) {
    const has = `the projector has the widths ${found.widths.join(', ')}, and this run's has ${widths.join(', ')}`;
    const remedy = 'give its own --layers, --llm and --encoder';
    throw new ServingError('config_invalid', `--from ${path}: ${has}: ${remedy}`);
  }
  const parameters = await readProjector(source, found);
  const hash = createHash('sha256');
  for (const values of parameters.values()) hash.update(values);
  return { parameters, digest: hash.digest('hex') };
}

export class TrainableProjector {
  readonly spec: ProjectorSpec;
  readonly parameters: Tensors;
  readonly #form: AlignmentForm;
  readonly #place: SessionPlace;
  readonly #forward: OrtSession;
  /** By the number of soft tokens. */
  readonly #backward = new Map<number, OrtSession>();

  private constructor(
    spec: ProjectorSpec,
    parameters: Tensors,
    form: AlignmentForm,
    place: SessionPlace,
    forward: OrtSession,
  ) {
    this.spec = spec;
    this.parameters = parameters;
    this.#form = form;
    this.#place = place;
    this.#forward = forward;
  }

  /**
   * @param parameters in the shapes of {@link projectorShapes}; they are read anew by every run
   * @throws ServingError runtime_failed
   */
  static async load(
    spec: ProjectorSpec,
    parameters: Tensors,
    form: AlignmentForm,
    place: SessionPlace,
  ): Promise<TrainableProjector> {
    const { session } = await openGraph(buildTrainableProjector(spec), place);
    return new TrainableProjector(spec, parameters, form, place, session);
  }

  /**
   * @param embeddings [n, encoder dim]
   * @returns [n, hidden]
   */
  async project(embeddings: Float32Array, signal?: AbortSignal): Promise<Float32Array> {
    const out = await this.#forward.run(this.#inputs(embeddings), undefined, signal);
    return out['soft_tokens']!.data as Float32Array;
  }

  /**
   * Gradients of the language model's losses + weight · alignment.
   * @param k soft tokens of each sample
   * @param embeddings [samples × k, encoder dim]
   * @param softGradient [samples × k, hidden]
   * @returns the gradients, and the alignment loss: mean over the samples, not weighted
   */
  async backward(
    k: number,
    embeddings: Float32Array,
    softGradient: Float32Array,
    alignmentWeight: number,
    signal?: AbortSignal,
  ): Promise<{ gradients: Tensors; alignment: number }> {
    const hidden = this.spec.widths.at(-1)!;
    const session = this.#backward.get(k) ?? (await this.#openBackward(k));
    const inputs = {
      ...this.#inputs(embeddings),
      soft_gradient: float32([softGradient.length / hidden, hidden], softGradient),
      alignment_weight: float32([], Float32Array.of(alignmentWeight)),
    };
    const out = await session.run(inputs, undefined, signal);
    const names = [...this.parameters.keys()];
    return {
      gradients: new Map(names.map((name) => [name, out[`gradient.${name}`]!.data as Float32Array])),
      alignment: out['alignment']!.data[0] as number,
    };
  }

  async #openBackward(k: number): Promise<OrtSession> {
    const { session } = await openGraph(buildProjectorTraining(this.spec, k, this.#form), this.#place);
    this.#backward.set(k, session);
    return session;
  }

  #inputs(embeddings: Float32Array): Record<string, Tensor> {
    const from = this.spec.widths[0]!;
    const shapes = projectorShapes(this.spec);
    const tensors = [...shapes].map(([name, shape]) => [name, float32(shape, this.parameters.get(name)!)] as const);
    return { embeddings: float32([embeddings.length / from, from], embeddings), ...Object.fromEntries(tensors) };
  }

  dispose(): void {
    this.#forward.dispose();
    for (const session of this.#backward.values()) session.dispose();
  }
}
