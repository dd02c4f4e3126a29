/** The pacing of background work, by a clock of the test. */
import { expect, test } from 'vitest';
import { isBusyBy, LONGEST_WAIT_MS, LOOK_EVERY_MS, Paced } from '../../services/lib/async/paced.ts';

/** Time passes when work takes it or when somebody sleeps. Looks at the machine are not counted as rests. */
class TestClock {
  atMs = 0;
  readonly rests: number[] = [];
  /** Whether others use the machine at this time, in ms. */
  busyAt = (_atMs: number) => false;

  isBusy(): boolean {
    return this.busyAt(this.atMs);
  }

  now(): number {
    return this.atMs;
  }

  async sleep(ms: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    this.atMs += ms;
    if (ms !== LOOK_EVERY_MS) this.rests.push(ms);
  }

  /** Work that takes so long, in ms. */
  readonly work = (ms: number) => async () => {
    this.atMs += ms;
    return ms;
  };
}

test('a piece is followed by as long a rest as its share asks for', async () => {
  const clock = new TestClock();
  const paced = new Paced(0.1, clock);
  for (const ms of [100, 50, 1]) expect(await paced.run(clock.work(ms))).toBe(ms);
  expect(clock.rests).toEqual([900, 450]);
  expect(clock.atMs).toBe(100 + 900 + 50 + 450 + 1 + 3 * LOOK_EVERY_MS);
});

test('time in which nothing was asked for counts as rest', async () => {
  const clock = new TestClock();
  const paced = new Paced(0.5, clock);
  await paced.run(clock.work(100));
  clock.atMs += 60;
  await paced.run(clock.work(100));
  clock.atMs += 1_000;
  await paced.run(clock.work(100));
  expect(clock.rests).toEqual([40]);
});

test('pieces that are asked for together run one after the other and share the time', async () => {
  const clock = new TestClock();
  const paced = new Paced(0.25, clock);
  let running = 0;
  const piece = () =>
    paced.run(async () => {
      running++;
      expect(running).toBe(1);
      await clock.work(100)();
      running--;
    });
  await Promise.all([piece(), piece(), piece()]);
  expect(clock.rests).toEqual([300, 300]);
});

test('a piece that fails is reported, owes its rest, and does not keep the next one from running', async () => {
  const clock = new TestClock();
  const paced = new Paced(0.5, clock);
  const failing = paced.run(async () => {
    clock.atMs += 100;
    throw new Error('the encoder failed');
  });
  await expect(failing).rejects.toThrow('the encoder failed');
  expect(await paced.run(clock.work(1))).toBe(1);
  expect(clock.rests).toEqual([100]);
});

test('with the whole time as share, pieces run at once and beside each other', async () => {
  const clock = new TestClock();
  const paced = new Paced(1, clock);
  const first = paced.run(() => paced.run(clock.work(5)));
  expect(await first).toBe(5);
  expect(clock.rests).toEqual([]);
});

test('a signal ends a rest with its reason, and a piece that has not begun does not run', async () => {
  const clock = new TestClock();
  const paced = new Paced(0.5, clock);
  await paced.run(clock.work(100));
  const draining = new AbortController();
  clock.sleep = async () => {
    draining.abort(new Error('draining'));
    throw new Error('aborted');
  };
  let ran = false;
  const waiting = paced.run(async () => {
    ran = true;
  }, draining.signal);
  await expect(waiting).rejects.toThrow('draining');
  await expect(paced.run(async () => {}, draining.signal)).rejects.toThrow('draining');
  expect(ran).toBe(false);
});

test('a piece begins when the machine has been idle for two looks, and one that waits too long begins anyway', async () => {
  const clock = new TestClock();
  const paced = new Paced(0.5, clock);
  const beganMs: number[] = [];
  const piece = () => paced.run(async () => void beganMs.push(clock.atMs));
  clock.busyAt = (atMs) => atMs < 40 || atMs === 50;
  await piece();
  clock.busyAt = () => true;
  await piece();
  expect(beganMs).toEqual([70, 70 + LONGEST_WAIT_MS]);
});

test('a signal ends the wait for an idle machine', async () => {
  const clock = new TestClock();
  clock.busyAt = () => true;
  const draining = new AbortController();
  const sleep = clock.sleep.bind(clock);
  clock.sleep = async (ms, signal) => {
    await sleep(ms, signal);
    if (clock.atMs >= 100) draining.abort(new Error('draining'));
  };
  const waiting = new Paced(0.5, clock).run(async () => {}, draining.signal);
  await expect(waiting).rejects.toThrow('draining');
  expect(clock.atMs).toBe(100);
});

test.each([
  ['2.00 1.50 1.00 2/345 6789', 4, false], // the one that asks, and one more
  ['0.00 0.00 0.00 3/345 6789', 4, true],
  ['0.00 0.00 0.00 8/345 6789', 16, false],
  ['0.00 0.00 0.00 9/345 6789', 16, true],
  ['9.00 9.00 9.00 1/345 6789', 1, false], // averages of minutes do not count
  ['0.00 0.00 0.00 2/345 6789', 1, true],
  ['', 1, false],
  ['0.00 0.00', 1, false],
])('a machine that says %j of %d cores is busy: %s', (text, cores, busy) => {
  expect(isBusyBy(text, cores)).toBe(busy);
});

test('one piece that took very long is followed by a minute at most', async () => {
  const clock = new TestClock();
  const paced = new Paced(0.01, clock);
  await paced.run(clock.work(3_600_000));
  await paced.run(clock.work(1));
  expect(clock.rests).toEqual([60_000]);
});
