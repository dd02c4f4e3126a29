/** The lag of the event loop is measured while it is busy, and an idle process is not woken for it. */
import { createHistogram, type IntervalHistogram } from 'node:perf_hooks';
import { expect, test, vi } from 'vitest';
import { LoopLag } from '../../services/lib/process/loop-lag.ts';

/** Delays of which the test decides, and whether their timer runs. */
function madeDelays() {
  const histogram = createHistogram();
  const timer = { runs: false };
  const delays = Object.assign(histogram, {
    enable: () => (timer.runs = true),
    disable: () => (timer.runs = false),
  }) as unknown as IntervalHistogram;
  return { delays, timer, add: (ms: number) => histogram.record(ms * 1e6) };
}

test('the timer runs only after a second in which the loop was busy', () => {
  const { delays, timer } = madeDelays();
  const lag = new LoopLag(delays);
  expect(timer.runs).toBe(false);
  lag.ask(0.02);
  expect(timer.runs).toBe(false);
  lag.ask(0.05);
  expect(timer.runs).toBe(true);
  lag.ask(0);
  expect(timer.runs).toBe(false);
});

test('in an idle minute the process is woken 60 times for it, and not 6,000 times', () => {
  vi.useFakeTimers({ toFake: ['setInterval'] });
  try {
    const { delays, timer } = madeDelays();
    const asked = vi.spyOn(LoopLag.prototype, 'ask').mockImplementation(() => {});
    new LoopLag(delays);
    vi.advanceTimersByTime(60_000);
    expect(asked).toHaveBeenCalledTimes(60);
    expect(vi.getTimerCount()).toBe(1);
    expect(timer.runs).toBe(false);
    asked.mockRestore();
  } finally {
    vi.useRealTimers();
  }
});

test('figures are those since the last scrape; without any the loop had no lag', () => {
  const { delays, add } = madeDelays();
  const lag = new LoopLag(delays);
  const idle = { min: 0.01, max: 0.01, mean: 0.01, stddev: 0, p50: 0.01, p90: 0.01, p99: 0.01 };
  expect(lag.take()).toEqual(idle);
  for (const ms of [10, 10, 10, 90]) add(ms);
  const { max, mean, p50 } = lag.take();
  expect(max).toBeCloseTo(0.09, 3);
  expect(mean).toBeCloseTo(0.03, 3);
  expect(p50).toBeCloseTo(0.01, 3);
  expect(lag.take()).toEqual(idle);
});
