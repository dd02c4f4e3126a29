/**
 * The stage before a run's own steps, in the paper's two schemes (its Appendix E). It is a run of its own within the
 * run's folder: `pretrain/` has the same files, but for embeddings. The run begins with the projector that it leaves,
 * and with a new optimiser.
 */
import { join } from 'node:path';
import { ServingError } from '../../services/lib/process/errors.ts';
import { makeFolder } from '../../services/lib/process/os-errors.ts';
import type { Progress } from '../../services/lib/process/progress.ts';
import type { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import type { Embeddings } from '../data/embeddings.ts';
import { SampleMaker } from '../data/samples.ts';
import { type DistinctChunks, recovering } from '../pretrain/chunks.ts';
import { cueAt } from '../pretrain/cues.ts';
import { MemoryTokens } from '../pretrain/memory-tokens.ts';
import { Regression, type Wanted } from '../pretrain/regression.ts';
import { PRETRAIN_PROMPT, type Pretraining } from '../pretrain/settings.ts';
import type { SessionPlace } from '../step/graph-session.ts';
import { type LossWeights, ModelPass, type ModelPlace } from '../step/pass.ts';
import { TrainableProjector, tableScale } from '../step/projector.ts';
import type { Tensors } from '../step/tensors.ts';
import { type EmbeddedSample, Trainer } from '../step/trainer.ts';
import { NO_STANDING } from './best.ts';
import { latestCheckpoint } from './checkpoints.ts';
import { decisiveDevice } from './device.ts';
import { batchOf } from './order.ts';
import { Run, type TrainReport } from './run.ts';
import { freezeSettings, type TrainOptions } from './settings.ts';
import { within } from './within.ts';

export interface PretrainingParts {
  readonly options: TrainOptions;
  readonly pretraining: Pretraining;
  /** The language model. */
  readonly place: ModelPlace;
  /** The projector. */
  readonly projectorPlace: SessionPlace;
  readonly widths: readonly number[];
  readonly shapes: ReadonlyMap<string, readonly number[]>;
  /** Those that a run without pretraining begins with; they are changed in place. */
  readonly initial: Tensors;
  readonly tokenizer: Tokenizer;
  /** What is recovered; all of it is encoded. */
  readonly chunks: DistinctChunks;
  /** SHA-256 of the data set, in hex. */
  readonly data: string;
  readonly embeddings: Embeddings;
  /** Folder of results that several runs can share. */
  readonly shared: string;
}

const CROSS_ENTROPY: LossWeights = { ce: 1, reinforce: 0, kl: 0, alignment: 0 };

/** Rows of the longest pass of a pretraining. */
export const pretrainRows = ({ tokens }: Pretraining, softPerChunk = 1) => promptRows(softPerChunk) + tokens;

/** Tokens of the longest prompt of a pretraining. */
const promptRows = (softPerChunk: number) => PRETRAIN_PROMPT + softPerChunk - 1;

/**
 * Pretrains, or goes on with the pretraining that lies in the run's folder, or reads what it left.
 * @returns its parameters, and its report as a run
 * @throws ServingError as {@link train}.
 */
export async function pretrain(
  parts: PretrainingParts,
  progress: Progress,
  signal: AbortSignal,
): Promise<{ readonly parameters: Tensors; readonly report: TrainReport }> {
  const { pretraining, place, projectorPlace, widths, shapes, initial, embeddings, chunks } = parts;
  const options = optionsOf(parts);
  const rows = pretrainRows(pretraining, embeddings.perChunk);
  if (rows > place.spec.maxPositions) {
    const why = `with a cue a chunk may take ${rows} positions, and --llm ${options.llm} has ${place.spec.maxPositions}`;
    throw new ServingError('config_invalid', `--pretrain-tokens ${pretraining.tokens}: ${why}: use fewer`);
  }
  await makeFolder(options.to);
  const told = within(progress, 'pretraining');
  told.update('reading the language model');
  // A file of its own: what lies in the shared one before the run's graphs would be part of their digests.
  const own = { ...place, shared: undefined, maxPositions: rows };
  const model = await ModelPass.load(own, CROSS_ENTROPY, signal);
  try {
    const inputs = { model: model.digest, encoder: embeddings.digest, data: parts.data, validation: undefined };
    const settings = { ...inputs, ...(place.device && decisiveDevice(place.device)) };
    const identity = await freezeSettings(join(options.to, 'run.json'), options, settings);
    const checkpoint = await latestCheckpoint(join(options.to, 'checkpoints'), shapes, identity);
    const parameters = checkpoint?.parameters ?? initial;
    const state = checkpoint?.adam;
    const projector = await TrainableProjector.load({ widths }, parameters, options.alignmentForm, projectorPlace);
    const run = {
      options,
      identity,
      shapes,
      parameters,
      standing: NO_STANDING,
      due: checkpoint?.due,
      encoderSettings: embeddings.settings,
      look: undefined,
      progress: told,
    };
    try {
      if (pretraining.scheme === 'reconstruct') {
        const trainer = new Trainer(projector, model, {}, options, state);
        const batch = (step: number) => reconstructions(step, parts);
        return { parameters, report: await new Run<EmbeddedSample>({ ...run, trainer, batch }).all(signal) };
      }
      const isDone = state?.steps === options.steps;
      const wanted = isDone ? [] : await memoryTokens(chunks, model, parts, progress, signal);
      model.dispose(); // the regression needs the projector alone
      const trainer = new Regression(projector, options, state);
      const batch = async (step: number) =>
        batchOf(step, options.batch, wanted.length, options.seed).map((i) => wanted[i]!);
      return { parameters, report: await new Run<Wanted>({ ...run, trainer, batch }).all(signal) };
    } finally {
      projector.dispose();
    }
  } finally {
    model.dispose();
  }
}

/** The settings of the stage as those of a run. */
function optionsOf({ options, pretraining }: PretrainingParts): TrainOptions {
  const { steps, learningRate } = pretraining;
  return {
    ...options,
    to: join(options.to, 'pretrain'),
    steps,
    learningRate,
    weights: CROSS_ENTROPY,
    validation: undefined,
    patience: 0,
  };
}

const recoveringSamples = ({ tokenizer, place, pretraining, embeddings }: PretrainingParts) =>
  new SampleMaker(tokenizer, place.spec.eosIds, {
    chunks: 1,
    softPerChunk: embeddings.perChunk,
    promptTokens: promptRows(embeddings.perChunk),
    targetTokens: pretraining.tokens,
    textTokens: 0,
  });

/** The samples of a step of `reconstruct`. */
async function reconstructions(step: number, parts: PretrainingParts) {
  const { chunks } = parts;
  const { batch, seed } = parts.options;
  const samples = recoveringSamples(parts);
  const made: EmbeddedSample[] = [];
  for (const [i, index] of batchOf(step, batch, chunks.count, seed).entries()) {
    const cue = cueAt(seed, step * batch + i);
    made.push(await recovering(chunks.at(index), cue, samples, parts.embeddings));
  }
  return made;
}

/** The memory tokens of all chunks, fitted as far as they are not kept. */
async function memoryTokens(
  chunks: DistinctChunks,
  model: ModelPass,
  parts: PretrainingParts,
  progress: Progress,
  signal: AbortSignal,
): Promise<Wanted[]> {
  const { place, pretraining, options, shared, embeddings } = parts;
  const samples = recoveringSamples(parts);
  const beginning = { seed: options.seed, scale: await tableScale(place.spec, place.weights) };
  const tokens = await MemoryTokens.open(shared, model, place.spec.hidden, pretraining.memory!, beginning);
  const wanted: Wanted[] = [];
  let ce = 0;
  for (let i = 0; i < chunks.count; i++) {
    const mean = i === 0 ? '' : `, mean CE ${(ce / i).toFixed(3)}`;
    progress.update(`pretraining: fitting memory token ${i + 1} of ${chunks.count}${mean}`);
    const sample = await recovering(chunks.at(i), '', samples, embeddings);
    const fitted = await tokens.of(sample, signal);
    ce += fitted.ce;
    for (const [token] of sample.softPositions.entries()) {
      const part = (vectors: Float32Array, size: number) => vectors.subarray(token * size, (token + 1) * size);
      const embedding = part(sample.embeddings, embeddings.dim);
      wanted.push({ name: sample.name, embedding, memory: part(fitted.vector, place.spec.hidden) });
    }
  }
  progress.succeed(
    `${chunks.count} memory tokens recover their chunks with a mean CE of ${(ce / chunks.count).toFixed(3)}`,
  );
  progress.start('pretraining');
  return wanted;
}
