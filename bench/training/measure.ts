/** Measures the rows of `bench training`, one after the other: several at a time would share memory and cores. */
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { TaskProcess } from '../harness/task-process.ts';
import type { TrainingTask } from './child.ts';
import { SHIPPED, type TrainingBenchOptions } from './command.ts';
import { type MeasuredTraining, nameOf, type TrainingCell, type TrainingResult } from './result.ts';

/** The rows in the order in which they are measured: small shapes and short prompts first. */
export const cellsOf = ({
  shape,
  frozen,
  prompt,
}: Pick<TrainingBenchOptions, 'shape' | 'frozen' | 'prompt'>): TrainingCell[] =>
  shape.flatMap((shape) => prompt.flatMap((prompt) => frozen.map((frozen) => ({ shape, frozen, prompt }))));

/**
 * @param isOver whether the time is over
 * @param save told of what there is after each row
 */
export async function measureTraining(
  options: TrainingBenchOptions & { readonly data: string },
  isOver: () => boolean,
  onProgress: (text: string) => void,
  save: (result: TrainingResult) => Promise<void>,
): Promise<TrainingResult> {
  const plan = cellsOf(options);
  const cells: MeasuredTraining[] = [];
  const result = () => ({ cells, left: plan.slice(cells.length) });
  for (const [i, cell] of plan.entries()) {
    if (isOver()) break;
    onProgress(`row ${i + 1} of ${plan.length}: ${nameOf(cell)}`);
    cells.push(await measureCell(cell, options, isOver));
    await save(result());
  }
  return result();
}

async function measureCell(
  cell: TrainingCell,
  options: TrainingBenchOptions & { readonly data: string },
  isOver: () => boolean,
): Promise<MeasuredTraining> {
  const { data, target, soft, recompute, threads, seed, repeats } = options;
  const never = new AbortController().signal;
  await mkdir(data, { recursive: true });
  const folder = await mkdtemp(join(data, 'training-'));
  const child = new TaskProcess<TrainingTask>(new URL('./child.js', import.meta.url), `training of ${nameOf(cell)}`);
  try {
    const checkpoint = cell.shape === SHIPPED ? join(PACKAGE_ROOT, 'models', SHIPPED) : undefined;
    const asked = { target, soft, recompute, threads, seed };
    const loadSeconds = (await child.ask({ do: 'load', cell, checkpoint, folder, options: asked }, never)) as number;
    const pass = () => child.ask({ do: 'pass' }, never) as Promise<{ seconds: number; cpuSeconds: number }>;
    await pass(); // the first one maps the weights and grows the memory
    const passes: { seconds: number; cpuSeconds: number }[] = [];
    do passes.push(await pass());
    while (passes.length < repeats && !isOver());
    const memory = (await child.ask({ do: 'memory' }, never)) as Pick<MeasuredTraining, 'peakBytes' | 'anonymousBytes'>;
    return {
      ...cell,
      loadSeconds,
      seconds: passes.map(({ seconds }) => seconds),
      cpuSeconds: passes.map(({ cpuSeconds }) => cpuSeconds),
      ...memory,
    };
  } finally {
    await child.stop();
    await rm(folder, { recursive: true, force: true });
  }
}
