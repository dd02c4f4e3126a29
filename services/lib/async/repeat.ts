/** Work that is done again and again until a signal ends it: polling, renewing, watching. */
import { setTimeout as sleep } from 'node:timers/promises';

/**
 * Runs `task`, pauses, and runs it again until `until` is aborted. The task's own failures are its own to handle: the
 * first rejection ends the loop and is thrown. It ends quietly when the signal is aborted, within a pause at once.
 * @param task returns the length of the pause that follows it, in ms; undefined ends the loop.
 */
export async function repeatUntilAborted(
  until: AbortSignal,
  task: () => Promise<number | undefined> | number | undefined,
): Promise<void> {
  while (!until.aborted) {
    const pauseMs = await task();
    if (pauseMs === undefined) return;
    // A pause is rejected by the signal alone, and the loop's own condition sees that.
    await sleep(pauseMs, undefined, { signal: until }).catch(() => {});
  }
}
