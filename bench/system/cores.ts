/** The CPU cores that each worker computes on, so that modes are compared on equal ones. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { ServingError } from '../../services/lib/process/errors.ts';

/**
 * `shared` lets every worker use all cores, as the paper's two workers share one GPU. `split` gives every worker cores
 * of its own, so that prefill and decode cannot disturb each other.
 */
export const PINNINGS = ['shared', 'split'] as const;
export type Pinning = (typeof PINNINGS)[number];

/**
 * The cores of each of `workers` workers: runs of equal length, the first ones one longer if the number does not divide
 * evenly. If there are fewer cores than workers, several workers get the same core.
 */
export function divideCores(cores: readonly number[], workers: number, pinning: Pinning): number[][] {
  if (pinning === 'shared') return Array.from({ length: workers }, () => [...cores]);
  if (cores.length < workers) return Array.from({ length: workers }, (_, i) => [cores[i % cores.length]!]);
  const cut = (worker: number) => Math.ceil((worker * cores.length) / workers);
  return Array.from({ length: workers }, (_, i) => cores.slice(cut(i), cut(i + 1)));
}

/**
 * Confines a process with all its threads to some cores. Linux only (taskset of util-linux).
 * @throws ServingError config_invalid if that is not possible.
 */
export async function pin(pid: number, cores: readonly number[]): Promise<void> {
  const args = ['--all-tasks', '--cpu-list', '--pid', cores.join(','), String(pid)];
  try {
    await promisify(execFile)('taskset', args, { timeout: 10_000 });
  } catch (cause) {
    const { stderr } = cause as { stderr?: string };
    throw new ServingError(
      'config_invalid',
      `cannot pin process ${pid} to cores ${cores.join(',')}: ${stderr?.trim() || 'taskset (util-linux) is not installed'}`,
      { cause },
    );
  }
}
