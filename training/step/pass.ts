/**
 * One sample through the frozen language model: the losses of its tokens, and their gradient at the soft tokens. Passes
 * are made one sample at a time: padding several to one length gains nothing on a CPU (211 µs a row with 150 rows, 250
 * with 550).
 */
import type { OrtSession } from '../../services/lib/engine/ort.ts';
import type { TensorSource } from '../../services/lib/model/checkpoint/checkpoint.ts';
import type { DecoderSpec } from '../../services/lib/model/checkpoint/spec.ts';
import type { BackwardFormat } from '../../services/lib/model/graph/gradient-rules.ts';
import type { LayerFormats } from '../../services/lib/model/graph/linear.ts';
import { buildTraining } from '../../services/lib/model/graph/training.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { openGraph, openRunner, type SessionPlace } from './graph-session.ts';
import type { GraphRunner } from './graph-workers.ts';
import { attentionBias, layOut, type Rollout, type Sample } from './rows.ts';
import { float32, int64 } from './tensors.ts';

/** Weights of the losses. A loss of weight 0 costs nothing. */
export interface LossWeights {
  /** Cross-entropy: mean over the target of -log p. */
  readonly ce: number;
  /** REINFORCE: -reward · Σ log p over the rollout. */
  readonly reinforce: number;
  /** KL divergence from the teacher, which sees the context as text: mean over the target. */
  readonly kl: number;
  /** Alignment of pairwise cosines; see projector-training.ts. */
  readonly alignment: number;
  /**
   * Distillation: mean over what the model writes where it reads the chunks as text of -log p. 0 where not given, so
   * that runs of versions without it go on.
   */
  readonly distill?: number | undefined;
}

export interface ModelPlace extends SessionPlace {
  readonly spec: DecoderSpec;
  readonly weights: TensorSource;
  readonly layers: LayerFormats;
  /** See buildTraining. */
  readonly backwardLayers?: BackwardFormat;
  readonly recompute?: boolean;
  /** The most rows of a pass: prompt, target and other continuations together. */
  readonly maxPositions: number;
}

/** The losses of one sample, not weighted, and the gradient of their weighted sum. */
export interface PassResult {
  readonly ce: number;
  /** Sum of log p over the rollout; 0 without one. */
  readonly rolloutLogp: number;
  /** 0 without a teacher. */
  readonly kl: number;
  /** 0 without distillation. */
  readonly distill: number;
  /** [soft, hidden] */
  readonly gradient: Float32Array;
}

/** Whether passes have more than one continuation of their prompt. */
const isJoint = ({ reinforce, distill = 0 }: LossWeights) => reinforce !== 0 || distill !== 0;
/** Whether graphs for this place are made of plain operators; see buildTraining. */
const isPlain = ({ device }: SessionPlace) => device !== undefined && device.kind !== 'cpu';
const sum = (values: Float32Array) => values.reduce((total, value) => total + value, 0);

export class ModelPass {
  /** SHA-256 of the graph and its weights, in hex: what the gradients depend on. */
  readonly digest: string;
  /** On a device: the operators that the CPU computes nevertheless, and how many of each. */
  readonly leftToCpu: ReadonlyMap<string, number>;
  readonly #runner: GraphRunner;
  readonly #place: ModelPlace;
  readonly #weights: LossWeights;

  private constructor(opened: Awaited<ReturnType<typeof openRunner>>, place: ModelPlace, weights: LossWeights) {
    this.digest = opened.digest;
    this.leftToCpu = opened.leftToCpu;
    this.#runner = opened.runner;
    this.#place = place;
    this.#weights = weights;
  }

  /** @throws ServingError checkpoint_invalid, runtime_failed, worker_lost; the signal's reason. */
  static async load(place: ModelPlace, weights: LossWeights, signal?: AbortSignal): Promise<ModelPass> {
    const graph = buildTraining(place.spec, place.weights, {
      ...place,
      backward: true,
      joint: isJoint(weights),
      plain: isPlain(place),
      kl: weights.kl !== 0,
    });
    return new ModelPass(await openRunner(graph, place, signal), place, weights);
  }

  /** Samples whose passes go on at a time. */
  get parallel(): number {
    return this.#runner.parallel;
  }

  /**
   * @param soft [soft, hidden]
   * @param scale of the gradient: 1 / samples of the batch
   * @param rollout of the prompt with these soft tokens, where REINFORCE has a weight
   * @param teacherLogp [target, vocab] of {@link TeacherPass}, where KL has a weight
   * @throws ServingError sample_invalid for a sample without a target, or longer than the rotation tables;
   *   training_diverged for a loss or gradient that is not finite; runtime_failed; the signal's reason.
   */
  async run(
    sample: Sample,
    soft: Float32Array,
    scale: number,
    { rollout, teacherLogp }: { readonly rollout?: Rollout; readonly teacherLogp?: Float32Array },
    signal?: AbortSignal,
  ): Promise<PassResult> {
    const { ce, reinforce, kl, distill = 0 } = this.#weights;
    const { hidden, vocab } = this.#place.spec;
    const rolloutIds = (reinforce !== 0 && rollout?.ids) || [];
    const distilledIds = (distill !== 0 && sample.distilledIds) || [];
    if (distill !== 0 && distilledIds.length === 0) throw new Error(`${sample.name} has nothing to be distilled`);
    const target = sample.targetIds.length;
    const rolledOut = target + rolloutIds.length;
    const { positions, ...rest } = rowInputs(sample, soft, [rolloutIds, distilledIds], this.#place);
    const weights = new Float32Array(rolledOut + distilledIds.length).fill((scale * ce) / target, 0, target);
    if (rollout) weights.fill(scale * reinforce * rollout.reward, target, rolledOut);
    weights.fill((scale * distill) / distilledIds.length, rolledOut);
    const inputs = { ...rest, weights: float32([weights.length], weights) };
    if (isJoint(this.#weights)) {
      const sequence = positions.length;
      Object.assign(inputs, {
        position_ids: int64([1, sequence], positions),
        attention_bias: float32([1, 1, sequence, sequence], attentionBias(sample, rolloutIds, distilledIds)),
      });
    }
    if (kl !== 0) {
      if (!teacherLogp) throw new Error('a KL loss needs the log-probabilities of the teacher');
      // Rows of other continuations have no teacher: with log q of 0 and a weight of 0 they add nothing.
      const teacher = new Float32Array(weights.length * vocab);
      teacher.set(teacherLogp);
      const klWeights = new Float32Array(weights.length).fill((scale * kl) / target, 0, target);
      Object.assign(inputs, {
        teacher_logp: float32([weights.length, vocab], teacher),
        kl_weights: float32([weights.length], klWeights),
      });
    }
    const out = await this.#runner.run(inputs, undefined, signal);
    const logp = out['token_logp']!.data as Float32Array;
    const result = {
      ce: -sum(logp.subarray(0, target)) / target,
      rolloutLogp: sum(logp.subarray(target, rolledOut)),
      distill: distilledIds.length === 0 ? 0 : -sum(logp.subarray(rolledOut)) / distilledIds.length,
      kl: kl === 0 ? 0 : sum((out['kl']!.data as Float32Array).subarray(0, target)) / target,
      gradient: out['soft_gradient']!.data as Float32Array,
    };
    assertFinite(sample, result, hidden);
    return result;
  }

  dispose(): void {
    this.#runner.dispose();
  }
}

/** The model as a teacher, or as a judge of targets: forward alone. */
export class TeacherPass {
  /** SHA-256 of the graph and its weights, in hex. */
  readonly digest: string;
  readonly #session: OrtSession;
  readonly #place: ModelPlace;

  private constructor(session: OrtSession, digest: string, place: ModelPlace) {
    this.digest = digest;
    this.#session = session;
    this.#place = place;
  }

  /** @throws ServingError checkpoint_invalid, runtime_failed; the signal's reason. */
  static async load(place: ModelPlace, signal?: AbortSignal): Promise<TeacherPass> {
    const graph = buildTraining(place.spec, place.weights, {
      ...place,
      backward: false,
      logp: true,
      plain: isPlain(place),
    });
    const { session, digest } = await openGraph(graph, place, signal);
    return new TeacherPass(session, digest, place);
  }

  /**
   * Log-probabilities of all tokens at each position of the target, [target, vocab].
   * @param soft [soft, hidden]; empty for a prompt that has its context as text
   * @throws ServingError as {@link ModelPass.run}.
   */
  async logp(sample: Sample, soft: Float32Array, signal?: AbortSignal): Promise<Float32Array> {
    return (await this.#run(sample, soft, 'logp', signal)).data as Float32Array;
  }

  /** Cross-entropy: mean over the target of -log p. @throws ServingError as {@link ModelPass.run}. */
  async ce(sample: Sample, soft: Float32Array, signal?: AbortSignal): Promise<number> {
    const { data } = await this.#run(sample, soft, 'token_logp', signal);
    const ce = -sum(data as Float32Array) / sample.targetIds.length;
    if (!Number.isFinite(ce)) throw diverged(sample, `its cross-entropy is ${ce}`);
    return ce;
  }

  async #run(sample: Sample, soft: Float32Array, output: string, signal?: AbortSignal) {
    const { positions: _, ...rows } = rowInputs(sample, soft, [], this.#place);
    return (await this.#session.run(rows, [output], signal))[output]!;
  }

  dispose(): void {
    this.#session.dispose();
  }
}

/** The inputs that every pass has, and the positions of the rows. */
function rowInputs(
  sample: Sample,
  soft: Float32Array,
  others: readonly (readonly number[])[],
  { spec, maxPositions }: ModelPlace,
) {
  const { ids, scored, targets, positions } = layOut(sample, ...others);
  const places = sample.softPositions;
  if (sample.targetIds.length === 0) throw unusable(sample, 'its target has no tokens: leave it out of the data set');
  if (sample.promptIds.length === 0) throw unusable(sample, 'its prompt has no tokens: leave it out of the data set');
  // ONNX Runtime wants as many positions in its tables as there are rows, also where positions stand twice.
  if (ids.length > maxPositions) {
    throw unusable(sample, `it takes ${ids.length} rows, and at most ${maxPositions} are prepared: cut its prompt`);
  }
  if (soft.length !== places.length * spec.hidden) {
    throw unusable(sample, `${soft.length / spec.hidden} soft tokens came for ${places.length} places in its prompt`);
  }
  return {
    positions,
    input_ids: int64([1, ids.length], ids),
    soft_tokens: float32([places.length, spec.hidden], soft),
    soft_positions: int64([places.length], places),
    rows: int64([scored.length], scored),
    targets: int64([targets.length], targets),
  };
}

const unusable = ({ name }: Sample, what: string) => new ServingError('sample_invalid', `${name}: ${what}`);
const diverged = ({ name }: Sample, what: string) => new ServingError('training_diverged', `${name}: ${what}`);

function assertFinite(sample: Sample, { gradient, ...losses }: PassResult, hidden: number): void {
  for (const [loss, value] of Object.entries(losses)) {
    if (!Number.isFinite(value)) throw diverged(sample, `its loss ${loss} is ${value}`);
  }
  const at = gradient.findIndex((value) => !Number.isFinite(value));
  if (at >= 0) throw diverged(sample, `the gradient of its soft token ${Math.floor(at / hidden)} is ${gradient[at]}`);
}
