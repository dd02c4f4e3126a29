/** What a process holds in memory, as the kernel counts it. */
import { readFile } from 'node:fs/promises';

/** All in bytes. */
export interface Memory {
  /** Resident, shared pages in full. */
  readonly rss: number;
  /** Resident, each shared page divided by how many processes share it; undefined where only Linux would tell. */
  readonly pss?: number;
  /** Resident and private to nobody's file: what a second process of the same model would need again. */
  readonly anonymous?: number;
}

export async function memoryOf(pid: number | 'self' = 'self'): Promise<Memory> {
  const text = await readFile(`/proc/${pid}/smaps_rollup`, 'utf8').catch(() => undefined);
  if (text === undefined) return { rss: process.memoryUsage.rss() };
  const bytes = (field: string) => Number(new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(text)?.[1]) * 1024;
  return { rss: bytes('Rss'), pss: bytes('Pss'), anonymous: bytes('Anonymous') };
}
