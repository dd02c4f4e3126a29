import { expect, test } from 'vitest';
import { runTogether } from '../../services/lib/async/task-group.ts';

const never = new AbortController().signal;
const untilAborted = (signal: AbortSignal) =>
  new Promise<never>((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));

test('tasks that run together give their values in order', async () => {
  expect(await runTogether(never, () => [Promise.resolve(1), Promise.resolve(2)])).toEqual([1, 2]);
});

test('the first failure aborts the other tasks and is thrown when all have ended', async () => {
  const failure = new Error('first');
  let othersReason: unknown;
  const together = runTogether(never, (live) => [
    Promise.reject(failure),
    untilAborted(live).catch((reason) => {
      othersReason = reason;
      throw new Error('second');
    }),
  ]);
  await expect(together).rejects.toBe(failure);
  expect(othersReason).toBe(failure);
});

test('the callers signal ends all tasks with its reason', async () => {
  const caller = new AbortController();
  const together = runTogether(caller.signal, (live) => [untilAborted(live), untilAborted(live)]);
  const reason = new Error('the client hung up');
  caller.abort(reason);
  await expect(together).rejects.toBe(reason);
});
