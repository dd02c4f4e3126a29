/** The order of work on a device. */
import fc from 'fast-check';
import { expect, onTestFinished, test, vi } from 'vitest';
import { FifoLane, NO_LANE } from '../../services/lib/engine/lane.ts';

/** Lets everything that is ready run. */
const settle = () => new Promise((resolve) => setImmediate(resolve));

test('whatever is asked for, aborted and failed, actions run one at a time in the order of asking', async () => {
  const step = fc.record({
    kind: fc.constantFrom('run', 'fail', 'after'),
    /** Turns of the event loop that the action takes. */
    turns: fc.nat(3),
    /** Turns after which its signal is aborted; undefined for no signal. */
    abortAfter: fc.option(fc.nat(6), { nil: undefined }),
    pause: fc.boolean(),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 12 }), async (steps) => {
      const lane = new FifoLane();
      const began: number[] = [];
      let running = 0;
      const enter = (i: number) => {
        expect(running++).toBe(0);
        began.push(i);
      };
      const outcomes = steps.map(async ({ kind, turns, abortAfter, pause }, i) => {
        const controller = new AbortController();
        const reason = new Error(`abort ${i}`);
        let ended = false;
        if (kind === 'after') {
          lane.after(() => {
            enter(i);
            running--;
          });
          return;
        }
        const done = lane.run(async () => {
          enter(i);
          for (let t = 0; t < turns; t++) await settle();
          running--;
          ended = true;
          if (kind === 'fail') throw new Error(`failed ${i}`);
          return i;
        }, controller.signal);
        const outcome = done.then(
          (value) => value,
          (error: Error) => {
            // Whoever aborts learns it when the action has really ended, or has not begun at all.
            expect(ended || !began.includes(i)).toBe(true);
            return error.message;
          },
        );
        if (abortAfter !== undefined) {
          for (let t = 0; t < abortAfter; t++) await settle();
          controller.abort(reason);
        }
        if (pause) await settle();
        const result = await outcome;
        if (!began.includes(i)) expect(result).toBe(`abort ${i}`);
        else if (result !== i) expect([`abort ${i}`, `failed ${i}`]).toContain(result);
      });
      await Promise.all(outcomes);
      await lane.run(() => {}); // behind whatever `after` still waits
      expect(running).toBe(0);
      expect(began).toEqual(began.toSorted((a, b) => a - b));
      const never = steps.map((_, i) => i).filter((i) => !began.includes(i));
      expect(never.every((i) => steps[i]!.abortAfter !== undefined)).toBe(true);
    }),
    { numRuns: 200 },
  );
});

test('an action that throws at once leaves the lane usable', async () => {
  const lane = new FifoLane();
  const fails = () => {
    throw new Error('no');
  };
  await expect(lane.run(fails)).rejects.toThrow('no');
  expect(await lane.run(() => 7)).toBe(7);
});

test('whoever has waited for an action finds the lane idle', async () => {
  const lane = new FifoLane();
  await lane.run(() => {});
  let ran = false;
  lane.after(() => {
    ran = true;
  });
  expect(ran).toBe(true);
});

test('ten thousand releases that wait behind an action all run, in order', async () => {
  const lane = new FifoLane();
  const ran: number[] = [];
  const running = lane.run(() => settle());
  for (let i = 0; i < 10_000; i++) lane.after(() => ran.push(i));
  await running;
  await lane.run(() => {});
  expect(ran).toEqual(Array.from({ length: 10_000 }, (_, i) => i));
});

test('a signal that is aborted already never starts the action', async () => {
  for (const lane of [new FifoLane(), NO_LANE]) {
    let ran = false;
    const signal = AbortSignal.abort(new Error('gone'));
    await expect(
      lane.run(() => {
        ran = true;
      }, signal),
    ).rejects.toThrow('gone');
    expect(ran).toBe(false);
  }
});

test('actions on the CPU run side by side', async () => {
  let release = () => {};
  const first = NO_LANE.run(() => new Promise<void>((resolve) => (release = resolve)));
  await NO_LANE.run(() => {});
  release();
  await first;
});

test('an action that does not end is told of once, those that waited for it and others are not', async () => {
  vi.useFakeTimers();
  onTestFinished(() => void vi.useRealTimers());
  const lane = new FifoLane();
  const hung = vi.fn();
  lane.onHung = hung;
  const slow = lane.run(() => new Promise<void>((resolve) => setTimeout(resolve, 599_000)));
  await vi.advanceTimersByTimeAsync(599_000);
  await slow;
  void lane.run(() => new Promise(() => {}));
  const waiting = new AbortController();
  const waits = lane.run(() => {}, waiting.signal).catch((error) => error);
  await vi.advanceTimersByTimeAsync(599_999);
  expect(hung).not.toHaveBeenCalled();
  await vi.advanceTimersByTimeAsync(3_600_000);
  expect(hung.mock.calls).toEqual([[600_000]]);
  expect(lane.busy).toBe(true);
  waiting.abort('gone');
  expect(await waits).toBe('gone');
});
