/** Sets of CPU cores, written as Linux does: `0-3,8`. */
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { ServingError } from './errors.ts';

/** Higher than any core number that Linux is built for. */
const MAX_CPUS = 8192;

/** Reads `0-2,8` as [0, 1, 2, 8]. @throws ServingError config_invalid. */
export function parseCpus(list: string): number[] {
  const cpus = list.split(',').flatMap((part) => {
    const [, from, to = from] = /^(\d+)(?:-(\d+))?$/.exec(part) ?? [];
    const [first, last] = [Number(from), Number(to)];
    if (!(first <= last && last < MAX_CPUS)) {
      throw new ServingError(
        'config_invalid',
        `cores ${JSON.stringify(list)} must have the form 0-3,8, with numbers below ${MAX_CPUS}`,
      );
    }
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  });
  return [...new Set(cpus)];
}

/** The cores that this process may use. */
export function allowedCpus(): number[] {
  try {
    const list = /^Cpus_allowed_list:\s*(\S+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1];
    if (list !== undefined) return parseCpus(list);
  } catch {
    // This is not Linux: all cores are allowed.
  }
  return Array.from({ length: availableParallelism() }, (_, i) => i);
}

/**
 * Divides cores into one run for each worker. Runs do not overlap and are equally long, or the first ones one core
 * longer.
 * @throws ServingError config_invalid where there are fewer cores than workers.
 */
export function divideCpus(cpus: readonly number[], workers: number): number[][] {
  if (cpus.length < workers) {
    throw new ServingError(
      'config_invalid',
      `${workers} workers cannot have cores of their own: this process may use only ${cpus.length} (${cpus.join(',')})`,
    );
  }
  const cut = (worker: number) => Math.ceil((worker * cpus.length) / workers);
  return Array.from({ length: workers }, (_, i) => cpus.slice(cut(i), cut(i + 1)));
}
