/**
 * A sweep: random search with successive halving over the learning rate and the weights of losses. All trials have the
 * same data, order of samples, initial projector and schedule; a trial that goes on goes on from its checkpoint. Its
 * folder:
 *
 *   sweep.json       what decides its results
 *   results.jsonl    what each trial scored at the end of each round, one line each
 *   embeddings/      what all trials share
 *   trials/000/      the run of a trial; its checkpoints are removed when it is out
 *   table.txt        the table, and the best settings as a command line, when all rounds are done
 *
 * Results of trials are kept, and a trial that was killed goes on from its last checkpoint.
 */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { ServingError } from '../../services/lib/process/errors.ts';
import { atPath, makeFolder } from '../../services/lib/process/os-errors.ts';
import type { Progress } from '../../services/lib/process/progress.ts';
import { KeptLines } from '../data/lines.ts';
import { readDataSet } from '../data/rows.ts';
import { isBetter } from '../run/best.ts';
import { Cleanup } from '../run/cleanup.ts';
import { lockRun } from '../run/lock.ts';
import { scoreWords } from '../run/run.ts';
import { decisive, freeze, type TrainOptions } from '../run/settings.ts';
import { stepsOf, train } from '../run/train.ts';
import { type Validation, validationSchema } from '../run/validation.ts';
import { within } from '../run/within.ts';
import { type Round, roundsOf } from './halving.ts';
import { drawn, type Range, type Settings, withSettings } from './space.ts';

export interface SweepOptions
  extends Omit<TrainOptions, 'validation' | 'embeddings' | 'pretrain' | 'pretrainOnly' | 'until'> {
  /** What trials are compared on. */
  readonly validation: string;
  readonly ranges: readonly Range[];
  readonly trials: number;
  /** See {@link roundsOf}. */
  readonly factor: number;
}

interface Trial {
  readonly number: number;
  readonly settings: Settings;
  /** Steps that it made. */
  readonly steps: number;
  /** Rounds that it was in. */
  readonly rounds: number;
  /** Of its best checkpoint; undefined where it diverged. */
  readonly validation: Validation | undefined;
}

export interface SweepResults {
  readonly rounds: readonly Round[];
  /** The best one first: those of more rounds before others. */
  readonly trials: readonly Trial[];
}

const scoreSchema = z.object({ validation: validationSchema.optional() });

/**
 * Searches, or goes on with the search that lies in the folder.
 * @throws ServingError as {@link train}, but for trials that diverge, which are out; training_diverged where all do;
 *   config_invalid for a folder of another sweep, or too few steps.
 */
export async function sweep(asked: SweepOptions, progress: Progress, signal: AbortSignal): Promise<SweepResults> {
  const { ranges, trials: count, factor, ...given } = asked;
  const { to, seed, every } = given;
  await using cleanup = new Cleanup();
  await atPath(`--to ${to}`, () => makeFolder(to));
  cleanup.defer(await lockRun(to));
  const [data, validation] = [await readDataSet(given.data, 'train'), await readDataSet(given.validation, 'valid')];
  const options = { ...given, steps: stepsOf(given, data.rows.length), epochs: undefined, patience: 0 };
  const rounds = roundsOf(count, options.steps, factor, every);
  const digests = { data: data.digest, validation: validation.digest };
  await freeze(join(to, 'sweep.json'), { ...decisive(options), ranges, trials: count, factor, digests });
  const kept = await KeptLines.open(join(to, 'results.jsonl'), scoreSchema);
  const all: Trial[] = Array.from({ length: count }, (_, number) => ({
    number,
    settings: drawn(ranges, seed, number),
    steps: 0,
    rounds: 0,
    validation: undefined,
  }));
  for (const [i, { trials, steps }] of rounds.entries()) {
    const shown = `round ${i + 1} of ${rounds.length}`;
    const entering = i === 0 ? all : all.toSorted(compare).slice(0, trials);
    for (const [place, { number, settings, validation }] of entering.entries()) {
      if (i > 0 && validation === undefined) continue; // fewer are left than the round has places
      const name = `${shown}, trial ${number + 1} (${place + 1} of ${entering.length})`;
      const key = `round ${i + 1} trial ${number}`;
      let score = kept.get(key);
      if (score === undefined) {
        progress.start(name);
        const run = {
          ...withSettings(options, settings),
          to: folderOf(to, number),
          embeddings: join(to, 'embeddings'),
        };
        score = await scored({ ...run, until: steps }, within(progress, name), signal);
        await kept.add(new Map([[key, score]]));
        progress.succeed(`${name}: ${score.validation ? scoreWords(score.validation) : 'diverged'}`);
      }
      all[number] = { ...all[number]!, steps, rounds: i + 1, validation: score.validation };
    }
    const next = rounds[i + 1]?.trials ?? 1;
    for (const { number } of all.toSorted(compare).slice(next)) {
      await rm(join(folderOf(to, number), 'checkpoints'), { recursive: true, force: true });
    }
  }
  const found = all.toSorted(compare);
  if (found[0]!.validation !== undefined) return { rounds, trials: found };
  const highest = Math.max(...found.map(({ settings }) => settings['learning-rate'] ?? options.learningRate));
  throw new ServingError(
    'training_diverged',
    `all ${count} trials diverged, with learning rates up to ${highest}: lower the range of learning-rate`,
  );
}

const folderOf = (to: string, trial: number) => join(to, 'trials', String(trial).padStart(3, '0'));

/** What a trial scores at the end of a round; without a validation where it diverged. */
async function scored(
  options: TrainOptions,
  progress: Progress,
  signal: AbortSignal,
): Promise<z.infer<typeof scoreSchema>> {
  try {
    return { validation: (await train(options, progress, signal)).validation };
  } catch (error) {
    if (error instanceof ServingError && error.code === 'training_diverged') return {};
    throw error;
  }
}

/** The better trial first: that which came further, then that with the better validation, then the earlier one. */
function compare(a: Trial, b: Trial): number {
  if ((a.validation === undefined) !== (b.validation === undefined)) return a.validation === undefined ? 1 : -1;
  if (a.rounds !== b.rounds) return b.rounds - a.rounds;
  if (a.validation && b.validation) {
    if (isBetter(a.validation, b.validation)) return -1;
    if (isBetter(b.validation, a.validation)) return 1;
  }
  return a.number - b.number;
}
