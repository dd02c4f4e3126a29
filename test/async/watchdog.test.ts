import { once } from 'node:events';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { Watchdog } from '../../services/lib/async/watchdog.ts';

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

const reason = new Error('nothing came');

test('a watchdog aborts its signal with the given reason when nothing came in time', async () => {
  const watchdog = new Watchdog(10, () => reason);
  vi.advanceTimersByTime(100); // not started yet
  expect(watchdog.signal.aborted).toBe(false);
  watchdog.start();
  const aborted = once(watchdog.signal, 'abort');
  vi.advanceTimersByTime(10);
  await aborted;
  expect(watchdog.signal.reason).toBe(reason);
});

test('a watchdog that is stopped or started again in time does not abort', () => {
  const watchdog = new Watchdog(10, () => reason);
  for (let i = 0; i < 5; i++) {
    watchdog.start();
    vi.advanceTimersByTime(9);
  }
  watchdog.stop();
  vi.advanceTimersByTime(100);
  expect(watchdog.signal.aborted).toBe(false);
});
