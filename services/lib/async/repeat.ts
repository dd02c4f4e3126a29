/** Repeats work until a signal ends it: polling, renewing, watching. */
import { setTimeout as sleep } from 'node:timers/promises';

/**
 * Runs `task`, pauses, and runs it again until `until` aborts. The task handles its own failures: a rejection ends the
 * loop and is thrown. An abort ends the loop without an error; during a pause it does so at once.
 * @param task returns the length of the following pause in ms; undefined ends the loop.
 */
export async function repeatUntilAborted(
  until: AbortSignal,
  task: () => Promise<number | undefined> | number | undefined,
): Promise<void> {
  while (!until.aborted) {
    const pauseMs = await task();
    if (pauseMs === undefined) return;
    // Only the signal rejects a pause, and the loop's condition sees that.
    await sleep(pauseMs, undefined, { signal: until }).catch(() => {});
  }
}
