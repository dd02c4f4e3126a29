/** The processes below one, as Linux shows them in /proc: what each of them is, and the CPU time that it has had. */
import { readdir, readFile } from 'node:fs/promises';
import { basename, join } from 'node:path';

export interface ProcessFigures {
  readonly pid: number;
  readonly parent: number;
  /** Its role in the system, such as `gateway`, or the name of its program. */
  readonly name: string;
  /** CPU time of all its threads, in ms. */
  readonly cpuMs: number;
  /** CPU time of the processes that it started and that have ended, in ms. */
  readonly endedCpuMs: number;
  /** How often its threads have waited for something and gone on. */
  readonly waits: number;
}

/** Words of the command by which processes of the product are known. */
const ROLES = new Set(['up', 'index', 'gateway', 'prefill', 'decode', 'colocated', 'indexer']);
/** Clock ticks of /proc: 100 a second on every architecture that Node runs on. */
const TICK_MS = 10;

/** The process and all that it has started, directly or not; those that have ended meanwhile are left out. */
export async function processTree(root: number): Promise<ProcessFigures[]> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name)).map(Number);
  const all = (await Promise.all(pids.map(figuresOf))).filter((each) => each !== undefined);
  const tree = all.filter(({ pid }) => pid === root);
  for (let i = 0; i < tree.length; i++) tree.push(...all.filter(({ parent }) => parent === tree[i]?.pid));
  return tree;
}

async function figuresOf(pid: number): Promise<ProcessFigures | undefined> {
  const dir = join('/proc', String(pid));
  try {
    const [stat, command] = await Promise.all([
      readFile(join(dir, 'stat'), 'latin1'),
      readFile(join(dir, 'cmdline'), 'utf8'),
    ]);
    const threads = await readdir(join(dir, 'task'));
    const waits = await Promise.all(threads.map((thread) => waitsOf(join(dir, 'task', thread, 'status'))));
    return { pid, name: nameOf(command), ...timesIn(stat), waits: waits.reduce((sum, each) => sum + each, 0) };
  } catch {
    return undefined; // it has ended
  }
}

/** @param stat the line of /proc/PID/stat, whose second field is a name in parentheses that may hold anything. */
export function timesIn(stat: string): Pick<ProcessFigures, 'parent' | 'cpuMs' | 'endedCpuMs'> {
  const fields = stat
    .slice(stat.lastIndexOf(')') + 2)
    .split(' ')
    .map(Number);
  const [utime = 0, stime = 0, cutime = 0, cstime = 0] = fields.slice(11, 15);
  return { parent: fields[1]!, cpuMs: (utime + stime) * TICK_MS, endedCpuMs: (cutime + cstime) * TICK_MS };
}

/** @param command the words of a command, each ended by a zero. */
export function nameOf(command: string): string {
  const words = command.split('\0');
  return words.find((word) => ROLES.has(word)) ?? basename(words[0]!.split(' ')[0]!);
}

async function waitsOf(status: string): Promise<number> {
  const text = await readFile(status, 'utf8').catch(() => ''); // the thread has ended
  return Number(/^voluntary_ctxt_switches:\s+(\d+)$/m.exec(text)?.[1] ?? 0);
}
