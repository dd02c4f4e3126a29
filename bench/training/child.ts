/** One row of `bench training` in a process of its own, so that its peak of memory is that of nothing else. */
import { readFile, writeFile } from 'node:fs/promises';
import { openSourceNetwork } from '../../services/lib/model/checkpoint/source-network.ts';
import { isDecoder } from '../../services/lib/model/checkpoint/spec.ts';
import { synthesize } from '../../services/lib/model/checkpoint/synth.ts';
import { wordsAt } from '../../services/lib/numeric/random.ts';
import { formatsOf } from '../../training/step/frozen.ts';
import { ModelPass } from '../../training/step/pass.ts';
import type { Rollout, Sample } from '../../training/step/rows.ts';
import { memoryOf } from '../engine/memory.ts';
import { serveTasks } from '../harness/task-process.ts';
import type { TrainingBenchOptions } from './command.ts';
import type { OwnCell } from './result.ts';

export type TrainingTask =
  | {
      readonly do: 'load';
      readonly cell: OwnCell;
      /** Folder of the checkpoint; undefined for random weights of the shape. */
      readonly checkpoint: string | undefined;
      /** Folder for the graph's file. */
      readonly folder: string;
      readonly options: Pick<TrainingBenchOptions, 'target' | 'rollout' | 'soft' | 'recompute' | 'threads' | 'seed'>;
    }
  | { readonly do: 'pass' }
  | { readonly do: 'memory' };

interface Subject {
  readonly pass: ModelPass;
  readonly sample: Sample;
  /** [soft, hidden] */
  readonly soft: Float32Array;
  /** Where it is trained by both losses. */
  readonly rollout: Rollout | undefined;
}
let subject: Subject | undefined;

async function load({ cell, checkpoint, folder, options }: TrainingTask & { readonly do: 'load' }): Promise<Subject> {
  const { target, rollout, soft, recompute, threads, seed } = options;
  await using network = checkpoint ? await openSourceNetwork(checkpoint) : await synthesize(cell.shape, seed);
  const { spec } = network;
  if (!isDecoder(spec)) throw new Error(`${cell.shape} is not a language model`);
  const maxPositions = cell.prompt + target + rollout;
  const place = { folder, threads, spec, weights: network.weights, recompute, maxPositions, ...formatsOf(cell.frozen) };
  const weights = { ce: 1, reinforce: cell.losses === 'joint' ? 1 : 0, kl: 0, alignment: 0 };
  const pass = await ModelPass.load(place, weights);
  const idsFrom = (start: number, length: number) =>
    Array.from({ length }, (_, i) => wordsAt(seed, start + i)[0] % spec.vocab);
  const sample = {
    name: 'a sample of random tokens',
    promptIds: idsFrom(0, cell.prompt),
    softPositions: Array.from({ length: soft }, (_, i) => i),
    // REINFORCE alone is cross-entropy of the rollout, times its reward.
    targetIds: idsFrom(cell.prompt, cell.losses === 'reinforce' ? rollout : target),
  };
  const vectors = Float32Array.from({ length: soft * spec.hidden }, (_, i) => wordsAt(seed + 1, i)[0] / 2 ** 31 - 1);
  // Linux counts the peak anew from here: loading has buffers that training does not.
  await writeFile('/proc/self/clear_refs', '5').catch(() => {});
  const both = cell.losses === 'joint' ? { ids: idsFrom(cell.prompt + target, rollout), reward: 1 } : undefined;
  return { pass, sample, soft: vectors, rollout: both };
}

async function perform(task: TrainingTask): Promise<unknown> {
  if (task.do === 'load') {
    const started = performance.now();
    subject = await load(task);
    return (performance.now() - started) / 1000;
  }
  if (task.do === 'memory') {
    const status = await readFile('/proc/self/status', 'utf8').catch(() => '');
    const peak = Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024;
    return { peakBytes: Number.isNaN(peak) ? undefined : peak, anonymousBytes: (await memoryOf()).anonymous };
  }
  if (subject === undefined) throw new Error('no model is loaded: the first task must be load');
  const { pass, sample, soft, rollout } = subject;
  const before = process.cpuUsage();
  const started = performance.now();
  await pass.run(sample, soft, 1, rollout ? { rollout } : {});
  const seconds = (performance.now() - started) / 1000;
  const { user, system } = process.cpuUsage(before);
  return { seconds, cpuSeconds: (user + system) / 1e6 };
}

serveTasks(perform);
