/**
 * The checkpoints of a run: `step-000120/` with the projector, the optimiser's state and the number of steps. A folder
 * appears whole or not at all, so a run goes on after any end of its process, and computes the same bits as one that
 * was never interrupted.
 */
import { randomUUID } from 'node:crypto';
import { readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { Checkpoint, expectTensor } from '../../services/lib/model/checkpoint/checkpoint.ts';
import { type WrittenTensor, writeSafetensors } from '../../services/lib/model/checkpoint/safetensors-writer.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { atPath, makeFolder, reasonOf } from '../../services/lib/process/os-errors.ts';
import type { AdamState } from '../step/optimizer.ts';
import type { Tensors } from '../step/tensors.ts';

/** The names of the parameters and their shapes. */
type Shapes = ReadonlyMap<string, readonly number[]>;

export interface RunState {
  readonly parameters: Tensors;
  /** Its number of steps is that of the run. */
  readonly adam: AdamState;
}

const PROJECTOR = 'projector.safetensors';
const OPTIMIZER = 'optimizer.safetensors';
const STATE = 'state.json';
const stateSchema = z.object({ steps: z.number().int().nonnegative() });
const NAME = /^step-(\d{6,})$/;
/** Older checkpoints are removed when a newer one has been written; the one before the newest is kept. */
const KEPT = 2;

const shaped = (prefix: string, tensors: Tensors, shapes: Shapes): [string, WrittenTensor][] =>
  [...shapes].map(([name, shape]) => [`${prefix}${name}`, { shape, data: tensors.get(name)! }]);

/** The tensors as a file has them. */
export const writable = (parameters: Tensors, shapes: Shapes) => new Map(shaped('', parameters, shapes));

/** @throws ServingError path_unusable */
export async function saveCheckpoint(dir: string, { parameters, adam }: RunState, shapes: Shapes): Promise<void> {
  await makeFolder(dir);
  const name = `step-${String(adam.steps).padStart(6, '0')}`;
  const work = join(dir, `.${name}.${randomUUID()}`);
  await atPath(join(dir, name), async () => {
    try {
      await makeFolder(work);
      await writeSafetensors(join(work, PROJECTOR), writable(parameters, shapes));
      const state = [...shaped('mean.', adam.means, shapes), ...shaped('square.', adam.squares, shapes)];
      await writeSafetensors(join(work, OPTIMIZER), new Map(state));
      await writeFile(join(work, STATE), `${JSON.stringify({ steps: adam.steps })}\n`, { flush: true });
      await rm(join(dir, name), { recursive: true, force: true }); // of a run whose log was lost
      await rename(work, join(dir, name));
    } finally {
      await rm(work, { recursive: true, force: true });
    }
    const names = await checkpointNames(dir);
    for (const old of names.slice(0, -KEPT)) await rm(join(dir, old), { recursive: true, force: true });
  });
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

/**
 * The newest checkpoint; undefined where there is none.
 * @throws ServingError checkpoint_invalid for one of another projector, or a damaged one.
 */
export async function latestCheckpoint(dir: string, shapes: Shapes): Promise<RunState | undefined> {
  const newest = (await checkpointNames(dir)).at(-1);
  if (newest === undefined) return undefined;
  const folder = join(dir, newest);
  await using projector = await Checkpoint.open(join(folder, PROJECTOR));
  await using optimizer = await Checkpoint.open(join(folder, OPTIMIZER));
  const read = async (source: Checkpoint, prefix: string): Promise<Tensors> => {
    const tensors = new Map<string, Float32Array>();
    for (const [name, shape] of shapes) tensors.set(name, await expectTensor(source, `${prefix}${name}`, shape)());
    return tensors;
  };
  const steps = await stepsOf(join(folder, STATE));
  const adam = { steps, means: await read(optimizer, 'mean.'), squares: await read(optimizer, 'square.') };
  return { parameters: await read(projector, ''), adam };
}

async function stepsOf(path: string): Promise<number> {
  try {
    return stateSchema.parse(JSON.parse(await readFile(path, 'utf8'))).steps;
  } catch (cause) {
    const why = `${path}: ${reasonOf(cause)}: remove its folder to go on from the checkpoint before it`;
    throw new ServingError('checkpoint_invalid', why, { cause });
  }
}
