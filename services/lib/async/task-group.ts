/** Tasks that run side by side, and of which none outlives the others' failure. */
import { setMaxListeners } from 'node:events';

/**
 * Runs tasks side by side. When one fails, the others are aborted with its error. All have ended when this returns.
 * @param start begins the tasks. Their signal is aborted with `signal`, or with the first failure.
 * @throws the first failure.
 */
export async function runTogether<T>(signal: AbortSignal, start: (live: AbortSignal) => Promise<T>[]): Promise<T[]> {
  const failed = new AbortController();
  const live = AbortSignal.any([signal, failed.signal]);
  setMaxListeners(0, live); // by design it has a listener for each task that waits
  const tasks = start(live);
  for (const task of tasks) task.catch((error) => failed.abort(error));
  await Promise.allSettled(tasks);
  failed.signal.throwIfAborted();
  return Promise.all(tasks);
}

/**
 * Runs tasks side by side that begin one after the other. When one fails, the others are aborted with its error. All
 * have ended when this returns.
 * @param begin adds the tasks, as they come. Their signal is aborted with `signal`, or with the first failure, also one
 *   of `begin`.
 * @throws the first failure.
 */
export async function runAsTheyCome(
  signal: AbortSignal,
  begin: (live: AbortSignal, add: (task: Promise<void>) => void) => Promise<void>,
): Promise<void> {
  const failed = new AbortController();
  const tasks: Promise<void>[] = [];
  const add = (task: Promise<void>) => void tasks.push(task.catch((error) => failed.abort(error)));
  await begin(AbortSignal.any([signal, failed.signal]), add).catch((error) => failed.abort(error));
  await Promise.all(tasks);
  failed.signal.throwIfAborted();
}
