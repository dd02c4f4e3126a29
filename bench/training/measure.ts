/** Measures the rows of `bench training`, one after the other: several at a time would share memory and cores. */
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { readNetworkSpec } from '../../services/lib/model/checkpoint/source-network.ts';
import { isDecoder } from '../../services/lib/model/checkpoint/spec.ts';
import { publishedSpec } from '../../services/lib/model/checkpoint/synth.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { TaskProcess } from '../harness/task-process.ts';
import type { TrainingTask } from './child.ts';
import { SHIPPED, type TrainingBenchOptions } from './command.ts';
import { PytorchPasses } from './pytorch.ts';
import {
  type MeasuredTraining,
  nameOf,
  type OwnCell,
  type PytorchCell,
  type TrainingCell,
  type TrainingResult,
} from './result.ts';

const SHIPPED_FOLDER = join(PACKAGE_ROOT, 'models', SHIPPED);

/** The rows in the order of their measurement: small shapes and short prompts first, PyTorch after our formats. */
export function cellsOf({
  shape,
  frozen,
  prompt,
  losses,
  pytorch,
}: Pick<TrainingBenchOptions, 'shape' | 'frozen' | 'prompt' | 'losses' | 'pytorch'>): TrainingCell[] {
  return shape.flatMap((shape) =>
    prompt.flatMap((prompt): TrainingCell[] => {
      const own = frozen.flatMap((frozen) =>
        losses.map((by): OwnCell => ({ shape, frozen, prompt, ...(by !== 'ce' && { losses: by }) })),
      );
      return pytorch === undefined ? own : [...own, { shape, frozen: 'pytorch', prompt }];
    }),
  );
}

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
    const measured =
      cell.frozen === 'pytorch' ? measurePytorch(cell, options, isOver) : measureOwn(cell, options, isOver);
    cells.push(await measured);
    await save(result());
  }
  return result();
}

async function measureOwn(
  cell: OwnCell,
  options: TrainingBenchOptions & { readonly data: string },
  isOver: () => boolean,
): Promise<MeasuredTraining> {
  const { data, target, rollout, soft, recompute, threads, seed, repeats } = options;
  const never = new AbortController().signal;
  await mkdir(data, { recursive: true });
  const folder = await mkdtemp(join(data, 'training-'));
  const child = new TaskProcess<TrainingTask>(new URL('./child.js', import.meta.url), `training of ${nameOf(cell)}`);
  try {
    const checkpoint = cell.shape === SHIPPED ? SHIPPED_FOLDER : undefined;
    const asked = { target, rollout, soft, recompute, threads, seed };
    const loadSeconds = (await child.ask({ do: 'load', cell, checkpoint, folder, options: asked }, never)) as number;
    const pass = () => child.ask({ do: 'pass' }, never) as Promise<{ seconds: number; cpuSeconds: number }>;
    const passes = await repeated(pass, repeats, isOver);
    const memory = (await child.ask({ do: 'memory' }, never)) as Pick<MeasuredTraining, 'peakBytes' | 'anonymousBytes'>;
    return { ...cell, loadSeconds, ...timesOf(passes), ...memory };
  } finally {
    await child.stop();
    await rm(folder, { recursive: true, force: true });
  }
}

async function measurePytorch(
  cell: PytorchCell,
  options: TrainingBenchOptions,
  isOver: () => boolean,
): Promise<MeasuredTraining> {
  const spec = cell.shape === SHIPPED ? await readNetworkSpec(SHIPPED_FOLDER) : publishedSpec(cell.shape);
  if (!isDecoder(spec)) throw new Error(`${cell.shape} is not a language model`);
  const started = performance.now();
  const python = await PytorchPasses.open(options.pytorch!, spec, { ...options, prompt: cell.prompt });
  try {
    const loadSeconds = (performance.now() - started) / 1000;
    const passes = await repeated(() => python.pass(), options.repeats, isOver);
    const { peakBytes, version } = passes.at(-1)!;
    return { ...cell, loadSeconds, ...timesOf(passes), peakBytes, anonymousBytes: undefined, version };
  } finally {
    await python.stop();
  }
}

/** Passes after a first one, which maps the weights and grows the memory: fewer when the time is over, but one. */
async function repeated<T>(pass: () => Promise<T>, repeats: number, isOver: () => boolean): Promise<T[]> {
  await pass();
  const passes: T[] = [];
  do passes.push(await pass());
  while (passes.length < repeats && !isOver());
  return passes;
}

const timesOf = (passes: readonly { readonly seconds: number; readonly cpuSeconds: number }[]) => ({
  seconds: passes.map(({ seconds }) => seconds),
  cpuSeconds: passes.map(({ cpuSeconds }) => cpuSeconds),
});
