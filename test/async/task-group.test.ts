import { setImmediate as nextTurn } from 'node:timers/promises';
import { expect, onTestFinished, test } from 'vitest';
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

test('as many tasks as there are choices may wait for one signal without a warning', async () => {
  const warnings: string[] = [];
  const warn = ({ name }: Error) => void warnings.push(name);
  process.on('warning', warn);
  onTestFinished(() => void process.off('warning', warn));
  const caller = new AbortController();
  const together = runTogether(caller.signal, (live) => Array.from({ length: 128 }, () => untilAborted(live)));
  caller.abort(new Error('over'));
  await expect(together).rejects.toThrow('over');
  await nextTurn(); // warnings are told in a later turn
  expect(warnings).toEqual([]);
});
