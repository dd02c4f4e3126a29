/**
 * One run: data set, embeddings, steps with checkpoints and validations, and at the end a projector in the form that
 * `llavacode export --projector` reads. A run's folder:
 *
 *   run.json       settings and digests that decide its results
 *   log.jsonl      the figures of every step and validation
 *   checkpoints/   the last two, to go on from
 *   embeddings/    of the chunks, by encoder
 *   projector/     model.safetensors and config.json, of the newest checkpoint
 */
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { PROMPT_FORMATS } from '../../services/lib/model/bundle/weight-formats.ts';
import { writeSafetensors } from '../../services/lib/model/checkpoint/safetensors-writer.ts';
import { openSourceNetwork } from '../../services/lib/model/checkpoint/source-network.ts';
import { isDecoder } from '../../services/lib/model/checkpoint/spec.ts';
import { type ProjectorSpec, projectorShapes } from '../../services/lib/model/graph/projector.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { atPath, makeFolder } from '../../services/lib/process/os-errors.ts';
import type { Progress } from '../../services/lib/process/progress.ts';
import { loadTokenizer, type Tokenizer } from '../../services/lib/text/tokenizer.ts';
import { Embeddings } from '../data/embeddings.ts';
import { type DataRow, readDataSet } from '../data/rows.ts';
import { SampleMaker } from '../data/samples.ts';
import { type AdamState, rateAt } from '../step/optimizer.ts';
import { ModelPass, type ModelPlace, TeacherPass } from '../step/pass.ts';
import { initialParameters, TrainableProjector } from '../step/projector.ts';
import { rewardOf } from '../step/reward.ts';
import { Rollouts } from '../step/rollouts.ts';
import type { Tensors } from '../step/tensors.ts';
import { type Companions, type EmbeddedSample, Trainer } from '../step/trainer.ts';
import { latestCheckpoint, saveCheckpoint, writable } from './checkpoints.ts';
import { Cleanup } from './cleanup.ts';
import { writeWhole } from './files.ts';
import { gradientCosine, LEAST_COSINE } from './gradient-check.ts';
import { RunLog } from './log.ts';
import { batchOf } from './order.ts';
import { freezeSettings, type TrainOptions } from './settings.ts';
import { type Validation, validate } from './validation.ts';

/** Sequences that decode together when rollouts are made. */
const ROLLOUT_SLOTS = 16;

export interface TrainReport {
  readonly steps: number;
  /** Folder of the projector. */
  readonly projector: string;
  readonly validation: Validation | undefined;
}

/**
 * Trains, or goes on with the run that lies in the folder.
 * @throws ServingError config_invalid, checkpoint_invalid, sample_invalid, training_diverged, path_unusable,
 *   runtime_failed; the signal's reason. Up to the last checkpoint the run's work is kept.
 */
export async function train(options: TrainOptions, progress: Progress, signal: AbortSignal): Promise<TrainReport> {
  const work = await atPath(`--to ${options.to}`, () => workFolder(options.to));
  await using cleanup = new Cleanup();
  cleanup.defer(() => rm(work, { recursive: true, force: true }));
  const llm = await openSourceNetwork(options.llm);
  cleanup.defer(() => llm[Symbol.asyncDispose]());
  const { spec } = llm;
  if (!isDecoder(spec)) {
    throw new ServingError(
      'config_invalid',
      `--llm ${options.llm}: ${spec.architecture} is an encoder: name a decoder`,
    );
  }
  const encoder = options.encoder === undefined ? llm : await openSourceNetwork(options.encoder);
  if (encoder !== llm) cleanup.defer(() => encoder[Symbol.asyncDispose]());
  const data = await readDataSet(options.data, 'train');
  const held = options.validation === undefined ? undefined : await readDataSet(options.validation, 'valid');
  const tokenizer = await loadTokenizer(llm.tokenizerDir);
  const samples = new SampleMaker(tokenizer, spec.eosIds, options);

  const place = placeOf(options, { spec, weights: llm.weights }, work);
  progress.update('reading the encoder');
  const embeddings = await Embeddings.open(
    join(options.to, 'embeddings'),
    encoder,
    options.encoderChoices,
    place,
    signal,
  );
  cleanup.defer(() => embeddings.dispose());
  const rows = [...data.rows, ...(held?.rows ?? [])];
  let looked = 0;
  function* chunks() {
    for (const row of rows) {
      yield* samples.chunksOf(row);
      looked++;
    }
  }
  const told = (done: number) => progress.update(`encoding chunks: ${done}, of ${looked} of ${rows.length} samples`);
  await embeddings.add(chunks(), told, signal);

  progress.update('reading the language model');
  const model = await ModelPass.load(place, options.weights, signal);
  cleanup.defer(() => model.dispose());
  const inputs = { model: model.digest, encoder: embeddings.digest, data: data.digest };
  await freezeSettings(join(options.to, 'run.json'), options, inputs);
  const widths = widthsOf(options.layers, embeddings.dim, spec.hidden);
  const kept = await latestCheckpoint(join(options.to, 'checkpoints'), projectorShapes({ widths }));
  const parameters = kept?.parameters ?? initialParameters({ widths }, options.seed);
  const projector = await TrainableProjector.load({ widths }, parameters, options.alignmentForm, place);
  cleanup.defer(() => projector.dispose());
  const judge = options.weights.kl === 0 && held === undefined ? undefined : await TeacherPass.load(place, signal);
  if (judge) cleanup.defer(() => judge.dispose());
  const companions = await companionsOf(options, place, samples, tokenizer, data.rows, judge, cleanup, signal);
  const trainer = new Trainer(projector, model, companions, options, kept?.adam);
  const run = new Run(options, { widths }, trainer, parameters, embeddings);
  const embedded = async (rows: readonly DataRow[]) => {
    const made: EmbeddedSample[] = [];
    for (const row of rows) made.push(await samples.embedded(row, embeddings));
    return made;
  };
  const valid = async () => (held && judge ? validate(await embedded(held.rows), projector, judge, signal) : undefined);
  if (options.frozen !== 'fp32' && kept === undefined) {
    const few = await embedded(data.rows.slice(0, CHECKED_SAMPLES));
    sayCosine(await gradientCosine(place, projector, few, signal), few.length, progress);
  }
  const batch = (step: number) =>
    embedded(batchOf(step, options.batch, data.rows.length, options.seed).map((i) => data.rows[i]!));
  return await run.all(batch, valid, progress, signal); // what it needs is given back after it
}

/** Samples on which the gradient through quantised weights is compared with that through 32-bit floats. */
const CHECKED_SAMPLES = 4;

function sayCosine(cosine: number, samples: number, progress: Progress): void {
  const found = `the gradient through 8-bit weights has a cosine of ${cosine.toFixed(4)} to that through 32-bit floats (${samples} samples)`;
  if (cosine < LEAST_COSINE) progress.warn(`${found}: --frozen fp32 would train better`);
  else progress.succeed(found);
  progress.start('training');
}

const WORK = '.work-';

/** A folder for graphs within that of the run. A process that was killed may have left its own, with gigabytes. */
async function workFolder(to: string): Promise<string> {
  await makeFolder(to);
  for (const name of await readdir(to)) {
    if (name.startsWith(WORK)) await rm(join(to, name), { recursive: true, force: true });
  }
  return mkdtemp(join(to, WORK));
}

/** The paper's widths: with three layers and more, those between are twice as wide as the language model. */
function widthsOf(layers: number, from: number, hidden: number): number[] {
  if (layers === 2) return [from, hidden, hidden];
  return [from, ...new Array<number>(layers - 1).fill(2 * hidden), hidden];
}

function placeOf(
  { frozen, recompute, threads, promptTokens, targetTokens, rolloutTokens, textTokens, weights }: TrainOptions,
  network: Pick<ModelPlace, 'spec' | 'weights'>,
  folder: string,
): ModelPlace {
  const continued = targetTokens + (weights.reinforce === 0 ? 0 : rolloutTokens);
  return {
    ...network,
    folder,
    threads,
    layers: frozen === 'fp32' ? 'fp32' : PROMPT_FORMATS,
    backwardLayers: frozen === 'fp32' ? 'fp32' : 'w8a8 by row',
    // See SessionOptions: in 32-bit floats a packed copy of each matrix for each direction costs more than it gains.
    packWeights: frozen !== 'fp32',
    recompute,
    maxPositions: promptTokens + continued + (weights.kl === 0 ? 0 : textTokens),
  };
}

/** Rollouts with their rewards, and the teacher, as far as the losses need them. */
async function companionsOf(
  options: TrainOptions,
  place: ModelPlace,
  samples: SampleMaker,
  tokenizer: Tokenizer,
  rows: readonly DataRow[],
  judge: TeacherPass | undefined,
  cleanup: Cleanup,
  signal: AbortSignal,
): Promise<Companions> {
  const byName = new Map(rows.map((row) => [row.name, row]));
  const teach: Companions['teach'] = (sample, signal) =>
    judge!.logp(samples.withText(byName.get(sample.name)!), new Float32Array(0), signal);
  if (options.weights.reinforce === 0) return { teach };
  const stopIds = new Set(samples.format.stopIds);
  const settings = { slots: Math.min(options.batch, ROLLOUT_SLOTS), tokens: options.rolloutTokens, stopIds };
  const rollouts = await Rollouts.load(place, settings, signal);
  cleanup.defer(() => rollouts.dispose());
  return {
    teach,
    rollOut: async (batch, soft, signal) => {
      const found = await rollouts.greedy(batch, soft, signal);
      return found.map((ids, i) => {
        const text = tokenizer.decode(ids.filter((id) => !stopIds.has(id)));
        const { exactMatch, editSimilarity } = rewardOf(text, byName.get(batch[i]!.name)!.target);
        return { ids, reward: exactMatch + editSimilarity };
      });
    },
  };
}

/** The steps of a run from where it stands to its end. */
class Run {
  readonly #options: TrainOptions;
  readonly #spec: ProjectorSpec;
  readonly #trainer: Trainer;
  readonly #parameters: Tensors;
  readonly #embeddings: Embeddings;

  constructor(
    options: TrainOptions,
    spec: ProjectorSpec,
    trainer: Trainer,
    parameters: Tensors,
    embeddings: Embeddings,
  ) {
    this.#options = options;
    this.#spec = spec;
    this.#trainer = trainer;
    this.#parameters = parameters;
    this.#embeddings = embeddings;
  }

  get #state(): AdamState {
    return this.#trainer.optimizerState;
  }

  async all(
    batch: (step: number) => Promise<readonly EmbeddedSample[]>,
    validation: () => Promise<Validation | undefined>,
    progress: Progress,
    signal: AbortSignal,
  ): Promise<TrainReport> {
    const { to, steps, every, learningRate, schedule, warmup } = this.#options;
    const log = await RunLog.open(join(to, 'log.jsonl'), this.#state.steps);
    let last: Validation | undefined;
    const validated = async () => {
      last = await validation();
      if (last) await log.write({ step: this.#state.steps, ...last });
    };
    if (this.#state.steps === 0) await validated();
    else if (this.#state.steps === steps) last = await validation(); // the log has its figures
    while (this.#state.steps < steps) {
      const step = this.#state.steps;
      const form = { form: schedule, warmup: Math.ceil(warmup * steps), total: steps };
      const rate = learningRate * rateAt(step, form);
      const figures = await this.#trainer.step(await batch(step), rate, signal);
      await log.write({ step: step + 1, rate, ...figures });
      progress.update(`step ${step + 1} of ${steps}: loss ${figures.loss.toFixed(4)}, CE ${figures.ce.toFixed(4)}`);
      if ((step + 1) % every === 0 || step + 1 === steps) {
        await validated();
        await this.#save();
      }
    }
    return { steps, projector: join(to, 'projector'), validation: last };
  }

  async #save(): Promise<void> {
    const { to } = this.#options;
    const shapes = projectorShapes(this.#spec);
    const state = { parameters: this.#parameters, adam: this.#state };
    await saveCheckpoint(join(to, 'checkpoints'), state, shapes);
    const folder = join(to, 'projector');
    await makeFolder(folder);
    await writeSafetensors(join(folder, 'model.safetensors'), writable(this.#parameters, shapes));
    const { pooling, maxTokens, addSpecialTokens, recipe, modality, normalize } = this.#embeddings.settings;
    const encoder = {
      pooling,
      max_tokens: maxTokens,
      add_special_tokens: addSpecialTokens,
      recipe,
      modality,
      normalize,
    };
    await writeWhole(join(folder, 'config.json'), `${JSON.stringify({ encoder }, null, 2)}\n`);
  }
}
