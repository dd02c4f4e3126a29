import { setImmediate as nextRound } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { atOnce, eachInTurns, inTurns } from '../../services/lib/async/turns.ts';

// The turn of the round in which the test before ended may be over.
beforeEach(async () => {
  await nextRound();
  await nextRound();
  vi.useFakeTimers({ toFake: ['performance'] }); // the clock goes on only with a step
});
afterEach(() => void vi.useRealTimers());

/** Work of so many steps, each of which takes longer than a turn. */
function* longWork(steps: number, onStep: () => void): Generator<void, string> {
  for (let step = 0; step < steps; step++) {
    vi.advanceTimersByTime(6);
    onStep();
    yield;
  }
  return 'done';
}

/** The steps that ran in each round of the event loop until `work` was done. */
async function stepsByRound(work: Promise<unknown>, count: () => number): Promise<number[]> {
  let done = false;
  const ended = work.finally(() => (done = true));
  const rounds: number[] = [];
  while (!done) {
    const before = count();
    await nextRound();
    rounds.push(count() - before);
  }
  await ended;
  return rounds;
}

test('long work of several callers has one turn per round of the event loop together, in the order of arrival', async () => {
  const steps: number[] = [];
  const works = [0, 1, 2, 3, 4].map((work) => inTurns(longWork(4, () => steps.push(work))));
  expect(steps).toEqual([0]); // one begins at once, and the others wait
  const rounds = await stepsByRound(Promise.all(works), () => steps.length);
  expect(await Promise.all(works)).toEqual(Array(5).fill('done'));
  expect(Math.max(...rounds)).toBe(1);
  expect(steps).toEqual([0, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 1, 2, 3, 4]);
});

test('work in turns ends with its signal, for the reason of the signal', async () => {
  const abort = new AbortController();
  let steps = 0;
  const work = inTurns(
    longWork(1_000, () => steps++),
    abort.signal,
  );
  expect(steps).toBe(1);
  const reason = new Error('nobody waits any more');
  abort.abort(reason);
  await expect(work).rejects.toBe(reason);
  expect(steps).toBe(1);
});

test('work that fails between two turns fails for its caller, and the next work has its turn', async () => {
  function* failing(): Generator<void, void> {
    yield* longWork(2, () => {});
    throw new Error('broken');
  }
  const works = [inTurns(failing()), inTurns(longWork(3, () => {}))];
  expect(await Promise.allSettled(works)).toMatchObject([{ reason: { message: 'broken' } }, { value: 'done' }]);
  expect(atOnce(longWork(2, () => {}))).toBe('done');
});

test('steps that are short together share a turn', async () => {
  function* short(): Generator<void, void> {
    for (let step = 0; step < 20; step++) {
      vi.advanceTimersByTime(1);
      steps++;
      yield;
    }
  }
  let steps = 0;
  const works = Array.from({ length: 30 }, () => inTurns(short()));
  const rounds = await stepsByRound(Promise.all(works), () => steps);
  expect(steps).toBe(600);
  expect(Math.max(...rounds)).toBe(5); // a turn
});

test('items that thirty make at once are made in one turn per round together, in their order', async () => {
  let made = 0;
  const reader = async () => {
    const items: number[] = [];
    for await (const item of eachInTurns(
      (function* () {
        for (let i = 0; i < 3; i++) {
          vi.advanceTimersByTime(6);
          made++;
          yield i;
        }
      })(),
    )) {
      items.push(item);
    }
    return items;
  };
  const readers = Array.from({ length: 30 }, reader);
  const rounds = await stepsByRound(Promise.all(readers), () => made);
  expect(await Promise.all(readers)).toEqual(Array(30).fill([0, 1, 2]));
  expect(Math.max(...rounds)).toBe(1);
});

test('work that is given up cleans up, and does no step more', async () => {
  const abort = new AbortController();
  let cleaned = 0;
  function* work(): Generator<void, void> {
    try {
      yield* longWork(1_000, () => {});
    } finally {
      cleaned++;
    }
  }
  const given = inTurns(work(), abort.signal);
  abort.abort(new Error('given up'));
  await expect(given).rejects.toThrow('given up');
  expect(cleaned).toBe(1);
});
