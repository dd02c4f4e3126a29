/** The priority of this process beside others of the machine. */
import { readdirSync } from 'node:fs';
import { setPriority } from 'node:os';

/**
 * Lets other processes go first when all cores are busy. On Linux each thread has a niceness of its own: that of those
 * that run already is set here, and threads that start later have that of the one that starts them.
 * @param nice 1 to 19; no right is needed to step back.
 */
export function stepBack(nice: number): void {
  if (process.platform !== 'linux') {
    setPriority(nice);
    return;
  }
  for (const thread of readdirSync('/proc/self/task')) {
    try {
      setPriority(Number(thread), nice);
    } catch {} // a thread that has ended meanwhile
  }
}
