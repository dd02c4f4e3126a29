/** When a device counts as lost. */
import { expect, test } from 'vitest';
import { DeviceHealth } from '../../services/lib/engine/device-health.ts';
import { ServingError } from '../../services/lib/process/errors.ts';

const failure = new ServingError('runtime_failed', 'the device was reset');

/** A device on which work ends as the words say; what it is lost with, once all has been tried. */
async function after(...work: readonly (readonly [kind: string, end: unknown])[]): Promise<ServingError | undefined> {
  const health = new DeviceHealth('the test GPU');
  for (const [kind, end] of work) {
    const done = health.attempt(kind, async () => {
      if (end !== 'ok') throw end;
      return kind;
    });
    if (end === 'ok') expect(await done).toBe(kind);
    else await expect(done).rejects.toBe(end);
  }
  return Promise.race([health.lost, new Promise<undefined>((resolve) => setImmediate(() => resolve(undefined)))]);
}

test('two failures in a row lose the device, with the reason', async () => {
  expect(await after(['a step', failure], ['a step', failure])).toMatchObject({
    code: 'runtime_failed',
    message: expect.stringMatching(/^the test GPU failed at a step 2 times in a row \(the device was reset\)/),
    cause: failure,
  });
});

test('a failure after which the same kind of work ends well does not lose it', async () => {
  expect(await after(['a step', failure], ['a step', 'ok'], ['a step', failure])).toBeUndefined();
});

test('work of another kind that ends well between two failures hides nothing', async () => {
  expect(await after(['a step', failure], ['a chunk', 'ok'], ['a step', failure])).toBeDefined();
});

test('callers that hang up, and an engine that is shut down, say nothing about the device', async () => {
  const gone = new Error('the client hung up');
  const draining = new ServingError('draining', 'the engine is shut down');
  expect(await after(['a step', gone], ['a step', gone], ['a step', draining], ['a step', draining])).toBeUndefined();
});

test('a device that hangs is lost, and nobody waits for what it does', async () => {
  const health = new DeviceHealth('the test GPU');
  expect(await health.unlessLost(Promise.resolve(1))).toBe(1);
  const waits = health.unlessLost(new Promise(() => {}));
  expect(health.isLost).toBe(false);
  health.hung(600_000);
  const lost = {
    code: 'runtime_failed',
    message: expect.stringMatching(
      /^the test GPU hangs: a run or copy has not come to an end for 600 s: .*started again/,
    ),
  };
  await expect(waits).rejects.toMatchObject(lost);
  expect(health.isLost).toBe(true);
  expect(await health.lost).toMatchObject(lost);
});
