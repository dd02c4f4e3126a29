/** Which cores each worker computes on, so that modes are compared on equal ones. */
import { availableParallelism } from 'node:os';
import { execa } from 'execa';
import { ServingError } from '../../services/lib/process/errors.ts';

/**
 * `shared`: every worker may use all cores (as the paper's two workers share one GPU). `split`: every worker has cores of
 * its own, so that prefill and decode cannot disturb each other; what isolation means.
 */
export const PINNINGS = ['shared', 'split'] as const;
export type Pinning = (typeof PINNINGS)[number];

/** `0,2-3` as [0, 2, 3]; all cores of the machine for undefined. */
export function parseCores(text: string | undefined): number[] {
  if (text === undefined) return Array.from({ length: availableParallelism() }, (_, i) => i);
  const cores = text.split(',').flatMap((part) => {
    const range = /^(\d+)(?:-(\d+))?$/.exec(part.trim());
    const [first, last] = [Number(range?.[1]), Number(range?.[2] ?? range?.[1])];
    if (range === null || last < first)
      throw new ServingError('config_invalid', `cores ${JSON.stringify(text)} must be like 0,2-3`);
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  });
  return [...new Set(cores)];
}

/**
 * Cores of each of `workers` workers: equal runs, the first ones one longer where it does not come out even; with fewer
 * cores than workers they take turns.
 */
export function divideCores(cores: readonly number[], workers: number, pinning: Pinning): number[][] {
  if (pinning === 'shared') return Array.from({ length: workers }, () => [...cores]);
  if (cores.length < workers) return Array.from({ length: workers }, (_, i) => [cores[i % cores.length]!]);
  const cut = (worker: number) => Math.ceil((worker * cores.length) / workers);
  return Array.from({ length: workers }, (_, i) => cores.slice(cut(i), cut(i + 1)));
}

/**
 * Confines a process with all its threads to cores. Linux only (taskset of util-linux).
 * @throws ServingError config_invalid where that is not possible.
 */
export async function pin(pid: number, cores: readonly number[]): Promise<void> {
  const args = ['--all-tasks', '--cpu-list', '--pid', cores.join(','), String(pid)];
  const { exitCode, stderr } = await execa('taskset', args, { reject: false, timeout: 10_000 });
  if (exitCode === 0) return;
  throw new ServingError(
    'config_invalid',
    `cannot pin process ${pid} to cores ${cores.join(',')}: ${stderr || 'taskset (util-linux) is not installed'}`,
  );
}
