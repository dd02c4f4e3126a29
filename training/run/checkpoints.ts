/**
 * The checkpoints of a run: `step-000120/` with the projector, the optimiser's state, the number of steps, and which
 * checkpoint is the best so far. A folder appears whole or not at all, so a run goes on after any end of its process,
 * and computes the same bits as one that was never interrupted.
 */
import { randomUUID } from 'node:crypto';
import { readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { Checkpoint, expectTensor } from '../../services/lib/model/checkpoint/checkpoint.ts';
import { type WrittenTensor, writeSafetensors } from '../../services/lib/model/checkpoint/safetensors-writer.ts';
import { ServingError, withRemedy } from '../../services/lib/process/errors.ts';
import { atPath, makeFolder, reasonOf } from '../../services/lib/process/os-errors.ts';
import type { AdamState } from '../step/optimizer.ts';
import type { Tensors } from '../step/tensors.ts';
import type { Standing } from './best.ts';
import { validationSchema } from './validation.ts';

/** The names of the parameters and their shapes. */
type Shapes = ReadonlyMap<string, readonly number[]>;

export interface RunState {
  readonly parameters: Tensors;
  /** Its number of steps is that of the run. */
  readonly adam: AdamState;
  readonly standing: Standing;
  /** Whether the run was stopped before the validation after its last step, which is still to be made. */
  readonly due?: boolean | undefined;
  /** Digest of the settings of its run; see freezeSettings. */
  readonly identity?: string | undefined;
}

const PROJECTOR = 'projector.safetensors';
const OPTIMIZER = 'optimizer.safetensors';
const STATE = 'state.json';
const wholeNumber = z.number().int().nonnegative();
const stateSchema = z.object({
  steps: wholeNumber,
  best: z.object({ step: wholeNumber, validation: validationSchema }).optional(),
  stale: wholeNumber,
  due: z.boolean().optional(),
  identity: z.string().optional(),
});
const GO_BACK = 'Remove its folder to go on from the checkpoint before it.';
const NAME = /^step-(\d{6,})$/;
/**
 * Older checkpoints are removed when a newer one has been written. The one before the newest is kept, in case that is
 * damaged; and the best one of each of the two.
 */
const KEPT = 2;

const shaped = (prefix: string, tensors: Tensors, shapes: Shapes): [string, WrittenTensor][] =>
  [...shapes].map(([name, shape]) => [`${prefix}${name}`, { shape, data: tensors.get(name)! }]);

/** The tensors as a file has them. */
export const writable = (parameters: Tensors, shapes: Shapes) => new Map(shaped('', parameters, shapes));

/** @throws ServingError path_unusable */
export async function saveCheckpoint(dir: string, state: RunState, shapes: Shapes): Promise<void> {
  await makeFolder(dir);
  const { parameters, adam, standing, due, identity } = state;
  const name = nameOf(adam.steps);
  const work = join(dir, `.${name}.${randomUUID()}`);
  await atPath(join(dir, name), async () => {
    try {
      await makeFolder(work);
      await writeSafetensors(join(work, PROJECTOR), writable(parameters, shapes));
      const means = [...shaped('mean.', adam.means, shapes), ...shaped('square.', adam.squares, shapes)];
      await writeSafetensors(join(work, OPTIMIZER), new Map(means));
      const said = { steps: adam.steps, ...standing, due: due || undefined, identity };
      await writeFile(join(work, STATE), `${JSON.stringify(said)}\n`, { flush: true });
      await rm(join(dir, name), { recursive: true, force: true }); // of a run whose log was lost
      await rename(work, join(dir, name));
    } finally {
      await rm(work, { recursive: true, force: true });
    }
    await removeOld(dir);
  });
}

const nameOf = (steps: number) => `step-${String(steps).padStart(6, '0')}`;

async function removeOld(dir: string): Promise<void> {
  // A process that was killed may have left a part of one.
  for (const name of await readdir(dir)) {
    if (name.startsWith('.step-')) await rm(join(dir, name), { recursive: true, force: true });
  }
  const names = await checkpointNames(dir);
  const kept = new Set(names.slice(-KEPT));
  for (const name of [...kept]) {
    const state = await readState(join(dir, name)).catch(() => undefined);
    if (state?.best) kept.add(nameOf(state.best.step));
  }
  for (const name of names) if (!kept.has(name)) await rm(join(dir, name), { recursive: true, force: true });
}

/** Names of the folders, the oldest first. */
async function checkpointNames(dir: string): Promise<string[]> {
  const names = await readdir(dir).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    throw error;
  });
  const stepOf = (name: string) => Number(NAME.exec(name)![1]);
  return names.filter((name) => NAME.test(name)).sort((a, b) => stepOf(a) - stepOf(b));
}

/** Whether there is a checkpoint, of whatever projector. */
export const hasCheckpoint = async (dir: string): Promise<boolean> => (await checkpointNames(dir)).length > 0;

/**
 * The newest checkpoint; undefined where there is none.
 * @param identity that its run must have
 * @throws ServingError checkpoint_invalid for one of another projector or another run, or a damaged one.
 */
export async function latestCheckpoint(dir: string, shapes: Shapes, identity?: string): Promise<RunState | undefined> {
  const newest = (await checkpointNames(dir)).at(-1);
  if (newest === undefined) return undefined;
  const folder = join(dir, newest);
  const { steps, best, stale, due, identity: found } = await readState(folder);
  if (identity !== undefined && found !== undefined && found !== identity) {
    const what = `${folder} is a checkpoint of another run: its settings or data are not those of run.json`;
    throw new ServingError('checkpoint_invalid', what, { remedy: 'Put it back where it was, or remove it.' });
  }
  return await withRemedy('checkpoint_invalid', GO_BACK, async () => {
    await using optimizer = await Checkpoint.open(join(folder, OPTIMIZER));
    const [means, squares] = [await read(optimizer, 'mean.', shapes), await read(optimizer, 'square.', shapes)];
    const adam = { steps, means, squares };
    return { parameters: await checkpointParameters(dir, steps, shapes), adam, standing: { best, stale }, due };
  });
}

/** The projector of the checkpoint after so many steps. @throws ServingError checkpoint_invalid */
export async function checkpointParameters(dir: string, steps: number, shapes: Shapes): Promise<Tensors> {
  await using projector = await Checkpoint.open(join(dir, nameOf(steps), PROJECTOR));
  return await read(projector, '', shapes); // within: the file is closed when this returns
}

async function read(source: Checkpoint, prefix: string, shapes: Shapes): Promise<Tensors> {
  const tensors = new Map<string, Float32Array>();
  for (const [name, shape] of shapes) tensors.set(name, await expectTensor(source, `${prefix}${name}`, shape)());
  return tensors;
}

async function readState(folder: string): Promise<z.infer<typeof stateSchema>> {
  const path = join(folder, STATE);
  try {
    return stateSchema.parse(JSON.parse(await readFile(path, 'utf8')));
  } catch (cause) {
    throw new ServingError('checkpoint_invalid', `${path}: ${reasonOf(cause)}`, { cause, remedy: GO_BACK });
  }
}
