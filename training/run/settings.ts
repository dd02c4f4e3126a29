/** What a run is asked for, and the part of it that decides its results: that part may not change when it goes on. */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { isDeepStrictEqual } from 'node:util';
import type { AlignmentForm } from '../../services/lib/model/graph/projector-training.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { reasonOf } from '../../services/lib/process/os-errors.ts';
import type { BASELINES, FROZEN_FORMATS, PROVIDERS, SCHEDULES, STARTS } from '../choices.ts';
import type { EncoderChoices } from '../data/embeddings.ts';
import type { Pretraining } from '../pretrain/settings.ts';
import type { LossWeights } from '../step/pass.ts';
import { writeWhole } from './files.ts';
import type { RewardWeights } from './scored-rollouts.ts';

export interface TrainOptions {
  /** Hugging Face folder of the language model. */
  readonly llm: string;
  /** That of the encoder; the language model encodes where not given. */
  readonly encoder: string | undefined;
  readonly encoderChoices: EncoderChoices;
  readonly data: string;
  readonly validation: string | undefined;
  /** The most samples of it that are judged, evenly spaced; all where not given. */
  readonly validationSamples?: number | undefined;
  /** Folder of the run. A run that lies there goes on. */
  readonly to: string;
  /** Folder of embeddings that several runs share; within that of the run where not given. */
  readonly embeddings?: string;
  /** The projector that the run begins with, as the export takes one; random numbers where not given. */
  readonly from?: string | undefined;
  /** What a new projector begins with; random numbers where not given. */
  readonly start?: (typeof STARTS)[number] | undefined;
  readonly steps: number;
  /** How often all samples are seen, in place of steps where given. */
  readonly epochs?: number | undefined;
  readonly batch: number;
  readonly layers: 2 | 3 | 4;
  readonly chunks: number;
  readonly promptTokens: number;
  readonly targetTokens: number;
  readonly rolloutTokens: number;
  readonly textTokens: number;
  readonly weights: LossWeights;
  readonly alignmentForm: AlignmentForm;
  readonly reward: RewardWeights;
  readonly baseline: (typeof BASELINES)[number];
  readonly learningRate: number;
  readonly schedule: (typeof SCHEDULES)[number];
  /** Share of the steps in which the learning rate rises. */
  readonly warmup: number;
  readonly clipNorm: number;
  readonly weightDecay: number;
  readonly frozen: (typeof FROZEN_FORMATS)[number];
  readonly recompute: boolean;
  /** Bytes that the run may take; see memory.ts. */
  readonly memory?: number | undefined;
  /** The most rollouts that decode together, where that was decided. */
  readonly rolloutSlots?: number;
  /** The same for the completions of distillation, which have the chunks as text, where they are fewer. */
  readonly completionSlots?: number;
  readonly seed: number;
  readonly threads: number;
  /** Processes that make passes through the language model; 1 where not given. Each has its share of the threads. */
  readonly workers?: number | undefined;
  /** What graphs of training compute on; the CPU where not given. */
  readonly provider?: (typeof PROVIDERS)[number] | undefined;
  /** Steps between two checkpoints, and between two validations. */
  readonly every: number;
  /** Validations without a better one after which the run ends; it never does so at 0. */
  readonly patience: number;
  /** A stage before the steps; see pretraining.ts. */
  readonly pretrain?: Pretraining | undefined;
  /** Whether that stage is all; the same run without this goes on. */
  readonly pretrainOnly?: boolean;
  /** Steps after which to stop for now, with a checkpoint; the schedule is that of all steps. */
  readonly until?: number;
}

/**
 * Where things lie, and what does not change the steps; epochs become steps, memory decides
 * recomputation and slots, and the kind of the device that was found is one of the inputs. `every` counts: it decides
 * which checkpoint can be the best.
 */
const FREE = [
  'llm',
  'encoder',
  'data',
  'validation',
  'to',
  'embeddings',
  'from',
  'patience',
  'epochs',
  'memory',
  'pretrainOnly',
  'until',
  'provider',
] as const;

/** @throws ServingError config_invalid where no loss has a weight, or where workers would share threads. */
export function assertTrains({
  weights,
  workers = 1,
  threads,
}: Pick<TrainOptions, 'weights' | 'workers' | 'threads'>): void {
  if (Object.values(weights).every((weight) => !weight)) {
    const why = 'all losses have the weight 0, so nothing would be trained';
    throw new ServingError('config_invalid', `${why}: give --ce, --reinforce, --kl, --alignment or --distill`);
  }
  if (workers <= threads) return;
  const why = `--workers ${workers} have ${threads} threads together, and each takes one at least`;
  throw new ServingError('config_invalid', `${why}: use at most --workers ${threads}, or more --threads`);
}

/** Digests of what the run depends on besides its settings. */
export interface RunInputs {
  readonly model: string;
  readonly encoder: string;
  readonly data: string;
  readonly validation: string | undefined;
  /** Of the projector that the run begins with, where one was named. */
  readonly from?: string;
  /** Its kind, where it is not the CPU. */
  readonly device?: string;
}

/**
 * Writes `run.json` for a new run, and compares for one that goes on.
 * @throws as {@link freeze}.
 */
export function freezeSettings(path: string, options: TrainOptions, inputs: RunInputs): Promise<string> {
  return freeze(path, { ...decisive(options), inputs });
}

/** The settings that decide the results of a run. */
export const decisive = (options: Partial<TrainOptions>): Record<string, unknown> =>
  Object.fromEntries(Object.entries(options).filter(([name]) => !(FREE as readonly string[]).includes(name)));

/**
 * Writes what decides the results of a run that begins. For one that goes on, compares: what follows would be of
 * another one.
 * @returns a SHA-256 of the settings, in hex
 * @throws ServingError config_invalid that names what differs; path_unusable.
 */
export async function freeze(path: string, settings: Readonly<Record<string, unknown>>): Promise<string> {
  const frozen = JSON.parse(JSON.stringify(settings)) as Record<string, unknown>;
  const before = await readFrozen(path);
  if (before === undefined) {
    await writeWhole(path, `${JSON.stringify(frozen, null, 2)}\n`);
    return digestOf(frozen);
  }
  const names = [...new Set([...Object.keys(before), ...Object.keys(frozen)])];
  const differ = names.filter((name) => !isDeepStrictEqual(before[name], frozen[name]));
  if (differ.length === 0) return digestOf(before);
  const [was, is] = [before, frozen].map((from) => JSON.stringify(Object.fromEntries(differ.map((n) => [n, from[n]]))));
  throw new ServingError(
    'config_invalid',
    `${path} is of a run with ${was}, and this one has ${is}: use the same settings to go on, or another --to`,
  );
}

const digestOf = (settings: unknown) => createHash('sha256').update(JSON.stringify(settings)).digest('hex');

async function readFrozen(path: string): Promise<Record<string, unknown> | undefined> {
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw error;
  });
  if (text === undefined) return undefined;
  try {
    return JSON.parse(text) as Record<string, unknown>;
  } catch (cause) {
    throw new ServingError('config_invalid', `${path} is damaged (${reasonOf(cause)}): use another --to`, { cause });
  }
}
