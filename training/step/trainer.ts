/**
 * One step of a run: the projector turns the batch's embeddings into soft tokens, the frozen language model says how
 * each soft token should change, the projector says how each of its parameters should, and the optimiser changes them.
 */
import { ServingError } from '../../services/lib/process/errors.ts';
import { ADAM_DEFAULTS, type AdamState, AdamW, clip } from './optimizer.ts';
import type { LossWeights, ModelPass } from './pass.ts';
import type { TrainableProjector } from './projector.ts';
import type { Rollout, Sample } from './rows.ts';
import type { Tensors } from './tensors.ts';

/** A sample with the embeddings of its chunks, [soft, encoder dim]. */
export interface EmbeddedSample extends Sample {
  readonly embeddings: Float32Array;
}

/** What the losses of the batch need besides the samples. */
export interface Companions {
  /**
   * A rollout for each sample, computed with the soft tokens of this step, where REINFORCE has a weight.
   * @param soft [soft, hidden] of each sample
   * @param step the number of steps before this one
   */
  readonly rollOut?: (
    samples: readonly Sample[],
    soft: readonly Float32Array[],
    step: number,
    signal?: AbortSignal,
  ) => Promise<readonly Rollout[]>;
  /** The teacher's log-probabilities [target, vocab] for a sample, where KL has a weight. */
  readonly teach?: (sample: Sample, signal?: AbortSignal) => Promise<Float32Array>;
}

/** Losses are means over the batch, not weighted; `loss` is their weighted sum. */
export type StepReport = {
  readonly loss: number;
  readonly ce: number;
  readonly reinforce: number;
  readonly kl: number;
  readonly alignment: number;
  readonly distill: number;
  /** Mean reward of the rollouts, before a baseline is subtracted; 0 without. */
  readonly reward: number;
  /** Tokens that went through the language model: prompts, targets and other continuations. */
  readonly tokens: number;
  /** L2 norm of all gradients together, before it was clipped. */
  readonly gradientNorm: number;
};

type Losses = Omit<StepReport, 'gradientNorm' | 'loss'>;

interface TrainerSettings {
  readonly weights: LossWeights;
  /** Largest L2 norm of all gradients together; larger ones are scaled down to it. */
  readonly clipNorm: number;
  readonly weightDecay: number;
}

export class Trainer {
  readonly #projector: TrainableProjector;
  readonly #model: ModelPass;
  readonly #companions: Companions;
  readonly #settings: TrainerSettings;
  readonly #adam: AdamW;

  /** @param state of the optimiser, to go on with an earlier run */
  constructor(
    projector: TrainableProjector,
    model: ModelPass,
    companions: Companions,
    settings: TrainerSettings,
    state?: AdamState,
  ) {
    this.#projector = projector;
    this.#model = model;
    this.#companions = companions;
    this.#settings = settings;
    const { weightDecay } = settings;
    this.#adam = new AdamW(projector.parameters, { ...ADAM_DEFAULTS, weightDecay }, state);
  }

  get optimizerState(): AdamState {
    return this.#adam.state;
  }

  /**
   * Changes the projector's parameters once, for the mean of the losses over the batch. Where it throws, they are as
   * they were.
   * @param onPass told how many of the samples went through the language model
   * @throws ServingError sample_invalid, training_diverged, runtime_failed; the signal's reason.
   */
  async step(
    batch: readonly EmbeddedSample[],
    learningRate: number,
    signal?: AbortSignal,
    onPass?: (done: number) => void,
  ): Promise<StepReport> {
    const { gradients, losses } = await this.gradients(batch, signal, onPass);
    const gradientNorm = clip(gradients, this.#settings.clipNorm);
    if (!Number.isFinite(gradientNorm)) {
      const names = await this.#culprits(batch, signal);
      throw new ServingError('training_diverged', `${names}: the norm of the gradient is ${gradientNorm}`);
    }
    this.#adam.step(gradients, learningRate);
    const { ce, reinforce, kl, alignment, distill = 0 } = this.#settings.weights;
    const ofTokens = ce * losses.ce + reinforce * losses.reinforce + kl * losses.kl + distill * losses.distill;
    const loss = ofTokens + alignment * losses.alignment;
    return { loss, ...losses, gradientNorm };
  }

  /** The gradient of the mean of the losses over the batch, for every parameter. @throws as {@link step}. */
  async gradients(
    batch: readonly EmbeddedSample[],
    signal?: AbortSignal,
    onPass?: (done: number) => void,
  ): Promise<{ gradients: Tensors; losses: Losses }> {
    const { weights } = this.#settings;
    const soft = await this.#softTokens(batch, signal);
    const rollouts =
      weights.reinforce === 0
        ? undefined
        : await this.#companions.rollOut!(batch, soft, this.#adam.state.steps, signal);
    const share = 1 / batch.length;
    const losses = { ce: 0, reinforce: 0, kl: 0, alignment: 0, distill: 0, reward: 0, tokens: 0 };
    const softGradients: Float32Array[] = [];
    let done = 0;
    const passes = await mapTogether(batch, this.#model.parallel, async (sample, i) => {
      const teacherLogp = weights.kl === 0 ? undefined : await this.#companions.teach!(sample, signal);
      const found = await this.#model.run(sample, soft[i]!, share, { rollout: rollouts?.[i], teacherLogp }, signal);
      onPass?.(++done);
      return found;
    });
    for (const [i, sample] of batch.entries()) {
      const rollout = rollouts?.[i];
      const found = passes[i]!;
      losses.ce += share * found.ce;
      losses.kl += share * found.kl;
      losses.distill += share * found.distill;
      losses.reinforce -= share * (rollout?.reward ?? 0) * found.rolloutLogp;
      losses.reward += share * (rollout?.worth ?? rollout?.reward ?? 0);
      losses.tokens += sample.promptIds.length + sample.targetIds.length + (rollout?.ids.length ?? 0);
      if (found.distill !== 0) losses.tokens += sample.distilledIds!.length;
      softGradients.push(found.gradient);
    }
    const gradients = new Map<string, Float32Array>();
    for (const [k, members] of groups(batch)) {
      const part = members.length * share;
      const found = await this.#projector.backward(
        k,
        concatenate(members.map((i) => batch[i]!.embeddings)),
        concatenate(members.map((i) => softGradients[i]!)),
        // The graph takes the mean over its samples; the batch may have samples with other numbers of soft tokens.
        weights.alignment * part,
        signal,
      );
      losses.alignment += part * found.alignment;
      for (const [name, gradient] of found.gradients) addInto(gradients, name, gradient);
    }
    return { gradients, losses };
  }

  /** Names of the samples whose gradient alone is not finite; of all where only their sum is not. */
  async #culprits(batch: readonly EmbeddedSample[], signal?: AbortSignal): Promise<string> {
    const found: string[] = [];
    for (const sample of batch) {
      const { gradients } = await this.gradients([sample], signal);
      if (!Number.isFinite(clip(gradients, 1))) found.push(sample.name);
    }
    return (found.length > 0 ? found : batch.map(({ name }) => name)).join(', ');
  }

  async #softTokens(batch: readonly EmbeddedSample[], signal?: AbortSignal): Promise<Float32Array[]> {
    const hidden = this.#projector.spec.widths.at(-1)!;
    const from = this.#projector.spec.widths[0]!;
    for (const { name, embeddings, softPositions } of batch) {
      if (softPositions.length === 0) {
        throw new ServingError('sample_invalid', `${name}: without a soft token it teaches the projector nothing`);
      }
      if (embeddings.length !== softPositions.length * from) {
        const rows = embeddings.length / from;
        throw new ServingError('sample_invalid', `${name}: ${rows} embeddings for ${softPositions.length} soft tokens`);
      }
      if (!embeddings.every(Number.isFinite)) {
        throw new ServingError('sample_invalid', `${name}: an embedding of its chunks is not finite`);
      }
    }
    const all = await this.#projector.project(concatenate(batch.map(({ embeddings }) => embeddings)), signal);
    let end = 0;
    return batch.map(({ softPositions }) => {
      const start = end;
      end += softPositions.length * hidden;
      return all.slice(start, end);
    });
  }
}

/**
 * Computes something for each item, `width` of them at a time. All that were begun have ended when this returns.
 * @returns the results in the order of the items
 * @throws the first failure; no other item is begun then.
 */
async function mapTogether<T, R>(
  items: readonly T[],
  width: number,
  compute: (item: T, index: number) => Promise<R>,
): Promise<R[]> {
  const results = new Array<R>(items.length);
  const failures: unknown[] = [];
  let next = 0;
  const lane = async () => {
    while (next < items.length && failures.length === 0) {
      const i = next++;
      await compute(items[i]!, i).then(
        (result) => {
          results[i] = result;
        },
        (error) => failures.push(error),
      );
    }
  };
  await Promise.all(Array.from({ length: width }, lane));
  if (failures.length > 0) throw failures[0];
  return results;
}

/** The indices of the samples with each number of soft tokens, in the order in which these numbers appear. */
function groups(batch: readonly EmbeddedSample[]): Map<number, number[]> {
  const found = new Map<number, number[]>();
  for (const [i, { softPositions }] of batch.entries()) {
    const members = found.get(softPositions.length) ?? [];
    members.push(i);
    found.set(softPositions.length, members);
  }
  return found;
}

function addInto(sums: Map<string, Float32Array>, name: string, values: Float32Array): void {
  const before = sums.get(name);
  if (before === undefined) sums.set(name, values);
  else for (let i = 0; i < before.length; i++) before[i]! += values[i]!;
}

function concatenate(parts: readonly Float32Array[]): Float32Array {
  const all = new Float32Array(parts.reduce((total, part) => total + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
