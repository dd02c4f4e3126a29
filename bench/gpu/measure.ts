/**
 * `bench gpu` runs its parts one after the other. Each has a share of the budget and a result of its own: what does not
 * fit is cut, what fails says why, and the rest goes on.
 */
import type { Save } from '../harness/run.ts';
import type { Pair } from '../tables/measure.ts';
import { Bundles } from './bundles.ts';
import { GPU_COMMAND, type GpuOptions, PART_NAMES, type PartName, TINY } from './command.ts';
import type { Part, PartContext, Sizes } from './parts/context.ts';
import { COMPARED, measureCorrectness } from './parts/correct.ts';
import { measureDevice, PRECISION } from './parts/device.ts';
import { measureHandoff } from './parts/handoff.ts';
import { measureMemory } from './parts/memory.ts';
import { measureSpeed } from './parts/speed.ts';
import { measurePaperTables } from './parts/tables.ts';
import { measureTwoWorkers } from './parts/two-workers.ts';
import type { Figure, GpuResult, PartResult } from './result.ts';
import type { Roofline } from './roofline.ts';

/**
 * Shares of the budget, in seconds of the default of eight minutes. They are meant for two models in two precisions on
 * a card, with bundles that are made meanwhile. What a part leaves over goes to those after it.
 */
const SHARES: Readonly<Record<PartName, number>> = {
  device: 40,
  correct: 50,
  speed: 200,
  tables: 110,
  handoff: 20,
  memory: 30,
  'two-workers': 30,
};

const LARGE: Sizes = {
  prompt: GPU_COMMAND.options.prompt.initial!,
  rows: GPU_COMMAND.options.rows.initial!,
  context: GPU_COMMAND.options.context.initial!,
  copy: 8192,
  product: 4096,
  repeats: 3,
  rounds: 3,
  steps: 16,
  soakSteps: 500,
};
/** A CPU takes minutes for what a card multiplies in a second. */
const ON_CPU = { copy: 4096, product: 1024 };
/** A software device computes a thousandth of what a card does: enough to show that every part runs. */
const SMALL: Sizes = {
  prompt: [16, 64],
  rows: [1, 2],
  context: 24,
  copy: 512,
  product: 128,
  repeats: 1,
  rounds: 1,
  steps: 4,
  soakSteps: 16,
};

/**
 * The sizes of a run: small ones where only the model that ships is measured, and what the user gave in any case.
 * @param given the options that the user gave.
 */
export function sizesOf(options: GpuOptions, given: Readonly<Record<string, unknown>>): Sizes {
  const large = options.provider === 'cpu' ? { ...LARGE, ...ON_CPU } : LARGE;
  const sizes = options.model.every((model) => model === TINY) ? SMALL : large;
  const own = (['prompt', 'rows', 'context'] as const).filter((name) => given[name] !== undefined);
  return { ...sizes, ...Object.fromEntries(own.map((name) => [name, options[name]])) };
}

/** Seconds after the start by which each part has to end. */
export function endsOf(parts: readonly PartName[], minutes: number): number[] {
  const all = parts.reduce((sum, part) => sum + SHARES[part], 0);
  let sum = 0;
  return parts.map((part) => {
    sum += SHARES[part];
    return (sum / all) * minutes * 60;
  });
}

export async function measureGpu(
  options: GpuOptions,
  sizes: Sizes,
  onProgress: (text: string) => void,
  save: Save<GpuResult>,
): Promise<GpuResult> {
  const names = PART_NAMES.filter((name) => options.parts.includes(name));
  const startMs = performance.now();
  const ends = endsOf(names, options.minutes);
  const bundles = new Bundles(options.data, wantedBundles(options));
  const parts: PartResult[] = [];
  let roofline: Partial<Roofline> = {};
  const run: Readonly<Record<PartName, Part>> = {
    device: async (context) => {
      roofline = await measureDevice(context);
    },
    correct: measureCorrectness,
    speed: measureSpeed,
    tables: measurePaperTables,
    handoff: measureHandoff,
    memory: measureMemory,
    'two-workers': measureTwoWorkers,
  };
  try {
    for (const [i, name] of names.entries()) {
      const endMs = startMs + ends[i]! * 1000;
      const shared = { options, sizes, bundles, roofline, endMs, onProgress };
      parts.push(await measurePart(name, run[name], shared));
      await save({ provider: options.provider, parts });
    }
  } finally {
    await bundles.stop();
  }
  return { provider: options.provider, parts };
}

/** What the parts will ask for, in about that order. */
export function wantedBundles({
  model: models,
  precision: precisions,
  parts,
}: Pick<GpuOptions, 'model' | 'precision' | 'parts'>) {
  const has = (...names: readonly PartName[]) => names.some((name) => parts.includes(name));
  const of = (wanted: readonly string[], formats: readonly string[]) =>
    wanted.flatMap((model) => formats.map((precision) => ({ model, precision })));
  const first = precisions.slice(0, 1);
  return [
    ...of([TINY], has('correct') ? COMPARED : has('device') ? [PRECISION] : []),
    ...of(has('handoff', 'memory', 'two-workers') ? models.slice(0, 1) : [], first),
    ...of(has('speed') ? models : [], precisions),
    ...of(has('tables') ? models : [], first),
  ];
}

type Shared = Omit<PartContext, 'signal' | 'add' | 'addPair'>;

async function measurePart(part: PartName, measure: Part, shared: Shared): Promise<PartResult> {
  const figures: Figure[] = [];
  const pairs: Pair[] = [];
  const startMs = performance.now();
  const signal = AbortSignal.timeout(Math.max(1, Math.round(shared.endMs - startMs)));
  const end = (status: PartResult['status'], reason?: string): PartResult => ({
    part,
    status,
    ...(reason !== undefined && { reason }),
    seconds: (performance.now() - startMs) / 1000,
    figures,
    ...(pairs.length > 0 && { pairs }),
  });
  const add = (figure: Figure) => void figures.push(figure);
  const addPair = (pair: Pair) => void pairs.push(pair);
  try {
    await measure({ ...shared, signal, add, addPair });
    return end('done');
  } catch (error) {
    if (signal.aborted) return end('cut', 'its share of --minutes was over: what it measured until then is here');
    return end('failed', error instanceof Error ? error.message : String(error));
  }
}
