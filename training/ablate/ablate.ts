/**
 * An ablation: rows that are trained with equal data, steps and seeds, and judged by one evaluator. Its folder:
 *
 *   ablation.json            what decides its results
 *   embeddings/              of the chunks, for all rows
 *   rows/ID/run/             the training of a row; see run/train.ts
 *   rows/ID/judgements.jsonl what the evaluator says of each sample
 *   rows/ID/result.json      there when the row is done
 *   results.json, table.txt  when all are
 *
 * A row that is done is not computed again; one that was killed goes on from its last checkpoint or judgement.
 */
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { openProjector, projectorParameters, readProjectorSpec } from '../../services/lib/model/graph/projector.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { atPath, makeFolder, reasonOf } from '../../services/lib/process/os-errors.ts';
import type { Progress } from '../../services/lib/process/progress.ts';
import { ARMS } from '../choices.ts';
import { readDataSet } from '../data/rows.ts';
import { assertRoomToJudge, evaluate } from '../evaluate/evaluate.ts';
import { type EvaluationInputs, KeptJudgements } from '../evaluate/kept.ts';
import { Cleanup } from '../run/cleanup.ts';
import { writeWhole } from '../run/files.ts';
import { lockRun } from '../run/lock.ts';
import { openNetworks } from '../run/networks.ts';
import { assertRoom, fitted } from '../run/room.ts';
import { decisive, freeze, type TrainOptions } from '../run/settings.ts';
import { stepsOf, train } from '../run/train.ts';
import { within } from '../run/within.ts';
import { type AblationResults, type JudgedRow, resultsOf } from './results.ts';
import type { Row } from './rows.ts';

export interface AblationOptions extends Omit<TrainOptions, 'validation' | 'embeddings' | 'pretrain' | 'pretrainOnly'> {
  /** What all rows are judged on. */
  readonly validation: string;
}

/**
 * Trains and evaluates all rows that are not done.
 * @throws ServingError as training and evaluation throw; config_invalid for a folder of another ablation; path_unusable
 *   where another process works in it.
 */
export async function ablate(
  rows: readonly Row[],
  asked: AblationOptions,
  progress: Progress,
  signal: AbortSignal,
): Promise<AblationResults> {
  const { to } = asked;
  await using cleanup = new Cleanup();
  await atPath(`--to ${to}`, () => makeFolder(to));
  cleanup.defer(await lockRun(to));
  const [data, validation] = [await readDataSet(asked.data, 'train'), await readDataSet(asked.validation, 'valid')];
  const options = { ...asked, steps: stepsOf(asked, data.rows.length), epochs: undefined };
  await assertRowsRun(rows, options);
  const digests = { data: data.digest, validation: validation.digest };
  await freeze(join(to, 'ablation.json'), { ...decisive(options), rows, digests });
  const judged: JudgedRow[] = [];
  for (const [i, row] of rows.entries()) {
    const shown = `row ${i + 1} of ${rows.length}, ${row.title}`;
    const known = await resultOf(join(to, 'rows', row.id));
    if (known === undefined) progress.start(shown);
    const { inputs, parameters } = known ?? (await computeRow(row, options, within(progress, shown), signal));
    const { made } = await KeptJudgements.open(join(to, 'rows', row.id, 'judgements.jsonl'), inputs);
    if (made.length !== validation.rows.length) throw damaged(join(to, 'rows', row.id));
    if (known === undefined) progress.succeed(shown);
    judged.push({ row, inputs, parameters, judgements: made });
  }
  const results = resultsOf(judged, options, { samples: data.rows.length, judged: validation.rows.length });
  await writeWhole(join(to, 'results.json'), `${JSON.stringify(results, null, 2)}\n`);
  return results;
}

/**
 * Whether there is a reason that a row cannot be computed: rows before it may take hours, and other settings would be
 * another ablation.
 * @throws ServingError config_invalid, checkpoint_invalid, path_unusable, with the row.
 */
async function assertRowsRun(rows: readonly Row[], options: AblationOptions): Promise<void> {
  for (const row of rows) {
    try {
      await using cleanup = new Cleanup();
      const settings = { ...options, ...definedOf(row.changes), validation: undefined };
      const encoder = row.arm === 'compressed' ? settings.encoder : undefined;
      const { spec } = await openNetworks({ llm: options.llm, encoder }, cleanup);
      assertRoomToJudge({ ...options, arm: row.arm }, spec);
      if (row.arm !== 'compressed') continue;
      assertRoom(settings, spec);
      fitted(settings, spec);
    } catch (error) {
      if (!(error instanceof ServingError)) throw error;
      throw new ServingError(error.code, `row ${row.id}: ${error.message}`, { cause: error });
    }
  }
}

async function computeRow(
  row: Row,
  options: AblationOptions,
  progress: Progress,
  signal: AbortSignal,
): Promise<RowResult> {
  const folder = join(options.to, 'rows', row.id);
  await makeFolder(folder);
  const settings = { ...options, ...definedOf(row.changes), embeddings: join(options.to, 'embeddings') };
  const run = join(folder, 'run');
  const compressor =
    row.arm !== 'compressed'
      ? undefined
      : {
          ...settings,
          // Without a validation of its own no row chooses its projector by the samples that it is judged on.
          projector: (await train({ ...settings, to: run, validation: undefined }, progress, signal)).projector,
        };
  const work = join(folder, 'work');
  try {
    const { inputs } = await evaluate(
      {
        ...settings,
        data: options.validation,
        arm: row.arm,
        softPerChunk: settings.encoderChoices.softPerChunk,
        compressor,
        to: join(folder, 'judgements.jsonl'),
        work,
      },
      (text) => progress.update(text),
      signal,
    );
    const result = { inputs, parameters: compressor && (await parametersOf(compressor.projector)) };
    await writeWhole(join(folder, 'result.json'), `${JSON.stringify(result, null, 2)}\n`);
    return result;
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

const definedOf = (changes: Row['changes']) =>
  Object.fromEntries(Object.entries(changes).filter(([, value]) => value !== undefined)) as Row['changes'];

/** Trainable parameters of the projector in a folder. */
async function parametersOf(projector: string): Promise<number> {
  await using weights = await openProjector(projector);
  return projectorParameters(readProjectorSpec(weights));
}

const resultSchema = z.object({
  inputs: z.object({
    arm: z.enum(ARMS),
    model: z.string(),
    data: z.string(),
    projector: z.string().optional(),
    encoder: z.string().optional(),
    settings: z.record(z.string(), z.number()),
  }) satisfies z.ZodType<EvaluationInputs>,
  parameters: z.number().optional(),
});
type RowResult = z.infer<typeof resultSchema>;

/** The result of a row that is done; undefined for one that is not. */
async function resultOf(folder: string): Promise<RowResult | undefined> {
  const path = join(folder, 'result.json');
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw error;
  });
  if (text === undefined) return undefined;
  try {
    return resultSchema.parse(JSON.parse(text));
  } catch (cause) {
    throw damaged(folder, cause);
  }
}

const damaged = (folder: string, cause?: unknown) =>
  new ServingError(
    'config_invalid',
    `${folder} is damaged${cause === undefined ? '' : ` (${reasonOf(cause)})`}: remove it, and its row is computed again`,
    { cause },
  );
