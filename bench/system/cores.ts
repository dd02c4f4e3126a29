/** Which cores each worker computes on, so that modes are compared on equal ones. */
import { execa } from 'execa';
import { allowedCpus, parseCpus } from '../../services/lib/process/cpus.ts';
import { ServingError } from '../../services/lib/process/errors.ts';

/**
 * `shared`: every worker may use all cores (as the paper's two workers share one GPU). `split`: every worker has cores of
 * its own, so that prefill and decode cannot disturb each other; what isolation means.
 */
export const PINNINGS = ['shared', 'split'] as const;
export type Pinning = (typeof PINNINGS)[number];

/** `0,2-3` as [0, 2, 3]; all that this process may use for undefined. */
export const parseCores = (text: string | undefined): number[] =>
  text === undefined ? allowedCpus() : parseCpus(text);

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
