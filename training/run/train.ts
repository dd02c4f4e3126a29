/**
 * One run: data set, embeddings, steps with checkpoints and validations, and at the end a projector in the form that
 * `llavacode export --projector` reads. A run's folder:
 *
 *   run.json         settings and digests that decide its results
 *   log.jsonl        the figures of every step and validation
 *   checkpoints/     the last two, to go on from, and the best
 *   embeddings/      of the chunks, by encoder, and other results that several runs can share
 *   projector/       model.safetensors and config.json, of the best checkpoint
 *   projector-last/  those of the newest one
 *   pretrain/        the stage before, as a run of its own; see pretraining.ts
 *   report.html      curves and pairwise cosines, of the newest one
 */
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { CPU } from '../../services/lib/engine/device.ts';
import type { SourceNetwork } from '../../services/lib/model/checkpoint/source-network.ts';
import type { DecoderSpec } from '../../services/lib/model/checkpoint/spec.ts';
import { SharedWeights } from '../../services/lib/model/graph/onnx.ts';
import { projectorShapes } from '../../services/lib/model/graph/projector.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { atPath, makeFolder } from '../../services/lib/process/os-errors.ts';
import type { Progress } from '../../services/lib/process/progress.ts';
import { loadTokenizer, type Tokenizer } from '../../services/lib/text/tokenizer.ts';
import { textCompletions } from '../data/completions.ts';
import { Embeddings } from '../data/embeddings.ts';
import { type DataRow, type DataSet, readDataSet } from '../data/rows.ts';
import { encodeChunks, SampleMaker } from '../data/samples.ts';
import { Judge } from '../evaluate/judge.ts';
import { DistinctChunks } from '../pretrain/chunks.ts';
import { START_CHUNKS, tokenStart } from '../pretrain/token-start.ts';
import type { SessionPlace } from '../step/graph-session.ts';
import { ModelPass, type ModelPlace, TeacherPass } from '../step/pass.ts';
import { initialParameters, readParameters, TrainableProjector, tableScale } from '../step/projector.ts';
import { Rollouts } from '../step/rollouts.ts';
import type { Sample } from '../step/rows.ts';
import { type Companions, type EmbeddedSample, Trainer } from '../step/trainer.ts';
import { NO_STANDING } from './best.ts';
import { hasCheckpoint, latestCheckpoint } from './checkpoints.ts';
import { Cleanup } from './cleanup.ts';
import { WATCHED_SAMPLES, watch } from './collapse.ts';
import { decisiveDevice, openTrainingDevice, sayPlacement } from './device.ts';
import { EncodingAhead } from './encoding.ts';
import { gradientCosine, LEAST_COSINE } from './gradient-check.ts';
import { lockRun } from './lock.ts';
import { ROLLOUT_SLOTS } from './memory.ts';
import { openNetworks } from './networks.ts';
import { batchOf } from './order.ts';
import { type PretrainingParts, pretrain } from './pretraining.ts';
import { distills, fitted, modelPlace } from './room.ts';
import { Run, type TrainReport } from './run.ts';
import { ScoredRollouts } from './scored-rollouts.ts';
import { freezeSettings, type TrainOptions } from './settings.ts';
import { spaced, validate } from './validation.ts';

/**
 * Trains, or goes on with the run that lies in the folder.
 * @throws ServingError config_invalid, checkpoint_invalid, sample_invalid, training_diverged, path_unusable (also where
 *   another process works on the run), runtime_failed; the signal's reason. Where the signal is aborted, a checkpoint
 *   of all steps so far is saved before; after any other end the last one is there.
 */
export async function train(asked: TrainOptions, progress: Progress, signal: AbortSignal): Promise<TrainReport> {
  await using cleanup = new Cleanup();
  const work = await ownFolder(asked.to, cleanup);
  const { llm, spec, encoder } = await openNetworks(asked, cleanup);
  const tokenizer = await loadTokenizer(llm.tokenizerDir);
  const samples = samplesOf(asked, tokenizer, spec);
  const data = samples.read(await readDataSet(asked.data, 'train'));
  const options = { ...asked, ...fitted(asked, spec), steps: stepsOf(asked, data.rows.length) };
  const held = await heldOut(options, samples);

  const device = await openTrainingDevice(options, cleanup, progress);
  const shared = await SharedWeights.create(join(work, 'weights.bin'));
  cleanup.defer(() => shared.close());
  const place = modelPlace(options, { spec, weights: llm.weights }, { folder: work, shared, device });
  progress.update('reading the encoder');
  const projectorPlace = { folder: work, threads: options.threads, device };
  const embeddings = await openEmbeddings(options, encoder, { ...projectorPlace, shared }, signal);
  cleanup.defer(() => embeddings.dispose());
  const rows = [...data.rows, ...(held?.rows ?? [])];
  const rowsOf = (step: number) =>
    batchOf(step, options.batch, data.rows.length, options.seed).map((i) => data.rows[i]!);
  const checked = data.rows.slice(0, CHECKED_SAMPLES);
  const ofSteps = { first: [...(held?.rows ?? []), ...checked], rowsOf, steps: options.steps, total: data.rows.length };
  const encoding = new EncodingAhead({ embeddings, samples, ...ofSteps }, (text) => progress.update(text));
  const widths = widthsOf(options.layers, embeddings.dim, spec.hidden);
  const shapes = projectorShapes({ widths });
  const { initial: first, ...begun } = await beginning(options, widths, { spec, weights: llm.weights });
  const network = { spec, weights: llm.weights, tokenizer, samples, embeddings, data, place: projectorPlace };
  const initial = await startOf({ ...network, options, widths, initial: first }, encoding, progress, signal);
  const before = { options, place, projectorPlace, widths, shapes, initial, tokenizer, samples, embeddings, data };
  const stage = await stageBefore(before, encoding, progress, signal);
  if (stage && options.pretrainOnly) return stage.report;
  const distilled = await distilledTargets(options, place, samples, data.rows, progress, signal);

  progress.update('reading the language model');
  const model = await ModelPass.load(place, options.weights, signal);
  cleanup.defer(() => model.dispose());
  sayPlacement(device, model.leftToCpu, progress);
  const digests = { model: model.digest, encoder: embeddings.digest, data: data.digest, validation: held?.digest };
  const inputs = { ...digests, ...begun, ...decisiveDevice(device) };
  const identity = await freezeSettings(join(options.to, 'run.json'), options, inputs);
  const state = await latestCheckpoint(join(options.to, 'checkpoints'), shapes, identity);
  const parameters = state?.parameters ?? stage?.parameters ?? initial;
  const projector = await TrainableProjector.load({ widths }, parameters, options.alignmentForm, projectorPlace);
  cleanup.defer(() => projector.dispose());
  const parts = { options, place, samples, tokenizer, rows, held: held?.rows.length ?? 0 };
  const { judges, companions } = await openCompanions(parts, cleanup, signal);
  const embedded = (some: readonly DataRow[]) => embedAll(some, samples, embeddings, distilled);
  await encoding.until(-1, signal);
  if (state === undefined) await compareGradients(place, options, projector, () => embedded(checked), progress, signal);
  await shared.close(); // all graphs are open
  const run = new Run<EmbeddedSample>({
    options,
    identity,
    shapes,
    parameters,
    trainer: new Trainer(projector, model, companions, options, state?.adam),
    standing: state?.standing ?? NO_STANDING,
    due: state?.due,
    encoderSettings: embeddings.settings,
    batch: async (step) => {
      await encoding.until(step, signal);
      return embedded(rowsOf(step));
    },
    look: () => look({ options, data, held, judges, projector, encoding, embedded }, signal),
    progress,
  });
  return await run.all(signal); // what it needs is given back after it
}

/** What the run is validated on; undefined where nothing is. */
async function heldOut({ validation, validationSamples }: TrainOptions, samples: SampleMaker) {
  if (validation === undefined) return undefined;
  const { digest, rows } = samples.read(await readDataSet(validation, 'valid'));
  return { digest, rows: spaced(rows, validationSamples) };
}

interface LookParts {
  readonly options: TrainOptions;
  readonly data: DataSet;
  readonly held: Pick<DataSet, 'rows'> | undefined;
  readonly judges: Omit<Parameters<typeof validate>[1], 'projector'> | undefined;
  readonly projector: TrainableProjector;
  readonly encoding: EncodingAhead;
  readonly embedded: (rows: readonly DataRow[]) => Promise<EmbeddedSample[]>;
}

/** Looks at the projector: by the validation, or without one at samples of the first steps, which the seed draws. */
async function look({ options, data, held, judges, ...parts }: LookParts, signal: AbortSignal) {
  const { projector, encoding, embedded } = parts;
  if (held && judges) {
    const found = await validate(await embedded(held.rows), { projector, ...judges }, signal);
    return { ...found, cosines: found.validation };
  }
  const { batch, steps, seed } = options;
  const count = Math.min(WATCHED_SAMPLES, data.rows.length, steps * batch);
  await encoding.until(Math.ceil(count / batch) - 1, signal);
  const rows = batchOf(0, count, data.rows.length, seed).map((i) => data.rows[i]!);
  return await watch(await embedded(rows), projector, signal);
}

/** The parameters that a run begins with, and their digest where they are of a projector that was named. */
async function beginning(
  { from, seed }: TrainOptions,
  widths: readonly number[],
  { spec, weights }: Pick<ModelPlace, 'spec' | 'weights'>,
) {
  if (from === undefined) return { initial: initialParameters({ widths }, await tableScale(spec, weights), seed) };
  const { parameters, digest } = await readParameters(from, { widths });
  return { initial: parameters, from: digest };
}

interface StartParts extends Omit<Parameters<typeof tokenStart>[0], 'chunks'> {
  readonly options: TrainOptions;
  readonly samples: SampleMaker;
  readonly data: DataSet;
}

/** The parameters of a new run: random numbers, or what --start says. Those of a run that goes on are not needed. */
async function startOf(
  { options, samples, data, ...parts }: StartParts,
  encoding: EncodingAhead,
  progress: Progress,
  signal: AbortSignal,
) {
  const { start, to } = options;
  if (start !== 'tokens' || (await hasCheckpoint(join(to, 'checkpoints')))) return parts.initial;
  const chunks = new DistinctChunks(data.rows, samples, START_CHUNKS);
  const told = (text: string) => progress.update(text);
  await encoding.until(-1, signal);
  await encodeChunks(chunks.rows, samples, parts.embeddings, told, signal);
  told(`fitting the projector to the tokens of ${chunks.count} chunks`);
  const { parameters, cosine } = await tokenStart({ ...parts, chunks }, signal);
  progress.succeed(`soft tokens have a cosine of ${cosine.toFixed(3)} to the tokens of their ${chunks.count} chunks`);
  progress.start('training');
  return parameters;
}

async function embedAll(
  rows: readonly DataRow[],
  samples: SampleMaker,
  embeddings: Embeddings,
  distilled: ReadonlyMap<string, readonly number[]> | undefined,
): Promise<EmbeddedSample[]> {
  const made: EmbeddedSample[] = [];
  for (const row of rows) {
    made.push({ ...(await samples.embedded(row, embeddings)), distilledIds: distilled?.get(row.name) ?? [] });
  }
  return made;
}

const openEmbeddings = (options: TrainOptions, encoder: SourceNetwork, place: SessionPlace, signal: AbortSignal) =>
  Embeddings.open(embeddingsFolder(options), encoder, options.encoderChoices, place, signal);

/**
 * The stage before the run's steps, where it has one and no step was made yet. Chunks are encoded as far as must be
 * before a language model is read.
 */
async function stageBefore(
  parts: Omit<PretrainingParts, 'pretraining' | 'shared' | 'chunks' | 'data'> & {
    readonly samples: SampleMaker;
    readonly data: DataSet;
  },
  encoding: EncodingAhead,
  progress: Progress,
  signal: AbortSignal,
) {
  const { options, samples, embeddings, data } = parts;
  const { pretrain: pretraining, pretrainOnly, to, memory, steps } = options;
  const isNext = pretraining && (pretrainOnly || !(await hasCheckpoint(join(to, 'checkpoints'))));
  const chunks = isNext ? new DistinctChunks(data.rows, samples, pretraining.chunks) : undefined;
  if (chunks) {
    await encoding.until(-1, signal);
    await encodeChunks(chunks.rows, samples, embeddings, (text) => progress.update(text), signal);
  }
  // The encoder's weights may be gigabytes: where memory is short, it is done before the language model is read.
  if (memory !== undefined) await encoding.until(steps, signal);
  if (!pretraining || !chunks) return undefined;
  const stage = { ...parts, pretraining, chunks, shared: embeddingsFolder(options), data: data.digest };
  return pretrain(stage, progress, signal);
}

/** Samples with as many soft tokens for each chunk as the encoder gives. */
const samplesOf = (options: TrainOptions, tokenizer: Tokenizer, { eosIds }: DecoderSpec) =>
  new SampleMaker(tokenizer, eosIds, { ...options, softPerChunk: options.encoderChoices.softPerChunk });

const embeddingsFolder = ({ embeddings, to }: TrainOptions) => embeddings ?? join(to, 'embeddings');

/** What the text arm writes for each sample that is trained on, by its name; undefined without distillation. */
async function distilledTargets(
  options: TrainOptions,
  place: ModelPlace,
  samples: SampleMaker,
  rows: readonly DataRow[],
  progress: Progress,
  signal: AbortSignal,
) {
  if (!distills(options.weights)) return undefined;
  const { promptTokens, textTokens, rolloutTokens: tokens, steps, batch, seed } = options;
  progress.update('reading the language model, to complete with chunks as text');
  const stopIds = new Set(samples.format.stopIds);
  // A file of its own: what lies in the shared one before the run's graphs would be part of their digests.
  const roomy = { ...place, shared: undefined, maxPositions: promptTokens + textTokens + tokens };
  const together = Math.min(options.completionSlots ?? (options.rolloutSlots || ROLLOUT_SLOTS), rows.length);
  const rollouts = await Rollouts.load(roomy, { slots: together, tokens, stopIds }, signal);
  try {
    // A run that does not see all samples completes those of its steps alone.
    const seen = steps * batch < rows.length ? batchOf(0, steps * batch, rows.length, seed) : [...rows.keys()];
    const settings = { dir: embeddingsFolder(options), tokens, together };
    const told = (text: string) => progress.update(text);
    const some = seen.map((i) => rows[i]!);
    return await textCompletions(some, samples, rollouts, settings, told, signal);
  } finally {
    await rollouts.dispose();
  }
}

/** The steps of a run over so many samples. */
export const stepsOf = ({ steps, epochs, batch }: Omit<TrainOptions, 'validation'>, samples: number): number =>
  epochs === undefined ? steps : Math.ceil((epochs * samples) / batch);

/** Samples on which the gradient through quantised weights is compared with that through 32-bit floats. */
const CHECKED_SAMPLES = 4;

/**
 * Says how the gradient of a run that begins agrees with that through 32-bit floats on the CPU, where it may differ.
 * @throws ServingError provider_unavailable for a device whose gradient is another one; what passes throw.
 */
async function compareGradients(
  place: ModelPlace,
  { frozen }: TrainOptions,
  projector: TrainableProjector,
  few: () => Promise<readonly EmbeddedSample[]>,
  progress: Progress,
  signal: AbortSignal,
): Promise<void> {
  const { kind, name } = place.device ?? CPU;
  if (frozen === 'fp32' && kind === 'cpu') return;
  const samples = await few();
  const cosine = await gradientCosine(place, projector, samples, signal);
  const [where, there] = kind === 'cpu' ? ['', ''] : [` on ${name}`, ' on the CPU'];
  const has = `has a cosine of ${cosine.toFixed(4)} to that through 32-bit floats${there} (${samples.length} samples)`;
  const found = `the gradient through ${frozen} weights${where} ${has}`;
  if (cosine >= LEAST_COSINE) progress.succeed(found);
  else if (kind === 'cpu') progress.warn(`${found}: --frozen fp32 would train better`);
  else throw new ServingError('provider_unavailable', `${found}: use --provider cpu`);
  progress.start('training');
}

const WORK = '.work-';

/**
 * Makes the run's folder this process's own.
 * @returns a folder for graphs within it. A process that was killed may have left its own, with gigabytes: it goes
 */
async function ownFolder(to: string, cleanup: Cleanup): Promise<string> {
  await atPath(`--to ${to}`, () => makeFolder(to));
  cleanup.defer(await lockRun(to));
  return atPath(`--to ${to}`, async () => {
    for (const name of await readdir(to)) {
      if (name.startsWith(WORK)) await rm(join(to, name), { recursive: true, force: true });
    }
    const work = await mkdtemp(join(to, WORK));
    cleanup.defer(() => rm(work, { recursive: true, force: true }));
    return work;
  });
}

/** The paper's widths: with three layers and more, those between are twice as wide as the language model. */
function widthsOf(layers: number, from: number, hidden: number): number[] {
  if (layers === 2) return [from, hidden, hidden];
  return [from, ...new Array<number>(layers - 1).fill(2 * hidden), hidden];
}

interface CompanionParts {
  readonly options: TrainOptions;
  readonly place: ModelPlace;
  readonly samples: SampleMaker;
  readonly tokenizer: Tokenizer;
  /** Those that are trained and validated on. */
  readonly rows: readonly DataRow[];
  /** Those that are validated on. */
  readonly held: number;
}

/** Rollouts with their scores, and the teacher, as far as losses and validations need them. */
async function openCompanions(parts: CompanionParts, cleanup: Cleanup, signal: AbortSignal) {
  const { options, place, samples, tokenizer, rows, held } = parts;
  const { reinforce, kl } = options.weights;
  const teacher = kl === 0 && held === 0 ? undefined : await TeacherPass.load(place, signal);
  if (teacher) cleanup.defer(() => teacher.dispose());
  const byName = new Map(rows.map((row) => [row.name, row]));
  const teach: Companions['teach'] = (sample, signal) =>
    teacher!.logp(samples.withText(byName.get(sample.name)!), new Float32Array(0), signal);
  const together = Math.max(reinforce === 0 ? 0 : options.batch, held);
  if (together === 0) return { judges: undefined, companions: { teach } };
  const stopIds = new Set(samples.format.stopIds);
  const settings = {
    slots: Math.min(together, options.rolloutSlots ?? ROLLOUT_SLOTS),
    tokens: options.rolloutTokens,
    stopIds,
  };
  const engine = await Rollouts.load(place, settings, signal);
  cleanup.defer(() => engine.dispose());
  const targetOf = ({ name }: Sample) => byName.get(name)!.target;
  const rollouts = new ScoredRollouts(engine, tokenizer, stopIds, targetOf, options);
  const judges = teacher && { judge: new Judge(teacher, engine, { tokenizer, stopIds }), targetOf };
  return { judges, companions: { teach, rollOut: rollouts.rollOut.bind(rollouts) } };
}
