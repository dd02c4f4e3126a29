/** What a part of the bench gets: its time, the bundles, the sink for its figures, and engines in processes. */
import { CHECKED_POSITIONS } from '../../../services/lib/engine/self-check.ts';
import { TaskProcess } from '../../harness/task-process.ts';
import type { Pair } from '../../tables/measure.ts';
import type { Bundles } from '../bundles.ts';
import type { EngineOptions, Opened, Task } from '../child.ts';
import type { GpuOptions } from '../command.ts';
import type { Figure } from '../result.ts';
import type { Roofline } from '../roofline.ts';

/** The sizes that differ between a large model on a card and the model that ships on a software device. */
export interface Sizes {
  /** Lengths of prompts in tokens. */
  readonly prompt: readonly number[];
  /** Sequences of a decode step. */
  readonly rows: readonly number[];
  /** Tokens that each of these sequences holds. */
  readonly context: number;
  /** Rows and columns of the matrices of the roofline. */
  readonly copy: number;
  readonly product: number;
  /** Measurements of each figure. */
  readonly repeats: number;
  /** Rounds of the paper's tables, if there is time for more than one. */
  readonly rounds: number;
  /** Decode steps of one measurement. */
  readonly steps: number;
  /** Decode steps over which memory must not grow. */
  readonly soakSteps: number;
}

export interface PartContext {
  readonly options: GpuOptions;
  readonly sizes: Sizes;
  readonly bundles: Bundles;
  /** Ends with the time of the part. */
  readonly signal: AbortSignal;
  /** When that is, by `performance.now()`. */
  readonly endMs: number;
  /** Measured by the part `device`, if that ran. */
  readonly roofline: Partial<Roofline>;
  readonly add: (figure: Figure) => void;
  readonly addPair: (pair: Pair) => void;
  readonly onProgress: (text: string) => void;
}

export type Part = (context: PartContext) => Promise<void>;

/** A task of the child and its answer, within the time of the part. */
export type Ask = <Answer>(task: Task) => Promise<Answer>;

/** Starts a process for one device, and ends it, with all that it holds on the device, when `use` has ended. */
export async function withProcess<T>({ signal }: Pick<PartContext, 'signal'>, use: (ask: Ask) => Promise<T>) {
  const child = new TaskProcess<Task>(new URL('../child.js', import.meta.url), 'the process of the device');
  try {
    return await use(<Answer>(task: Task) => child.ask(task, signal) as Promise<Answer>);
  } finally {
    await child.stop();
  }
}

/** Loads a bundle in a process of its own, as a worker loads it, with room for the tokens of the self-check. */
export function withEngine<T>(
  context: Pick<PartContext, 'signal'>,
  options: EngineOptions,
  use: (ask: Ask, opened: Opened) => Promise<T>,
): Promise<T> {
  const capacity = Math.max(options.capacity, CHECKED_POSITIONS);
  return withProcess(context, async (ask) =>
    use(ask, await ask<Opened>({ do: 'open', options: { ...options, capacity } })),
  );
}

/** The first model in the first precision: the parts that measure one model measure this. */
export async function firstBundle({ options, bundles, signal }: PartContext): Promise<{ name: string; dir: string }> {
  const [model, precision] = [options.model[0]!, options.precision[0]!];
  return { name: `${model} ${precision}`, dir: await bundles.get(model, precision, signal) };
}
