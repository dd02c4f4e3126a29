/** The priority of this process beside others of the machine. */
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { setPriority } from 'node:os';

/** Behind all others: the process has only the CPU that nobody else wants. */
export const IDLE = 20;
/** The lowest priority that `nice` knows, at which a process still takes an eighth of a core from one at 10. */
const LOWEST = 19;
const CHRT_TIMEOUT_MS = 5_000;

/**
 * Lets other processes go first when all cores are busy. On Linux each thread has a niceness of its own: that of those
 * that run already is set here, and threads that start later have that of the one that starts them.
 * @param nice 1 to 19, as `nice` does, or {@link IDLE}; no right is needed to step back.
 */
export function stepBack(nice: number): void {
  const niceness = Math.min(nice, LOWEST);
  if (process.platform !== 'linux') {
    setPriority(niceness);
    return;
  }
  for (const thread of readdirSync('/proc/self/task')) {
    try {
      setPriority(Number(thread), niceness);
    } catch {} // a thread that has ended meanwhile
  }
  // Node has no call for Linux's idle policy. Where there is no chrt, the lowest priority is what there is.
  const words = ['--all-tasks', '--idle', '--pid', '0', String(process.pid)];
  if (nice >= IDLE) spawnSync('chrt', words, { stdio: 'ignore', timeout: CHRT_TIMEOUT_MS });
}
