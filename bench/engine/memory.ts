/** The memory of a process, as the kernel counts it. */
import { readFile } from 'node:fs/promises';

/** All figures are in bytes. */
export interface ProcessMemory {
  /** Resident memory, with shared pages counted in full. */
  readonly rss: number;
  /** Resident memory, with each shared page divided by the number of processes that share it; known on Linux only. */
  readonly pss?: number;
  /**
   * Resident memory that no file backs: a second process of the same model would need it again. Known on Linux only.
   */
  readonly anonymous?: number;
}

export async function memoryOf(pid: number | 'self' = 'self'): Promise<ProcessMemory> {
  const text = await readFile(`/proc/${pid}/smaps_rollup`, 'utf8').catch(() => undefined);
  if (text === undefined) return { rss: process.memoryUsage.rss() };
  const bytes = (field: string) => Number(new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(text)?.[1]) * 1024;
  return { rss: bytes('Rss'), pss: bytes('Pss'), anonymous: bytes('Anonymous') };
}
