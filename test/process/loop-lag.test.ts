/** The lag of the event loop is measured while it is busy, and an idle process is not woken for it. */
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { LoopLag } from '../../services/lib/process/loop-lag.ts';

const [BUSY, IDLE] = [0.05, 0.02];
const FIGURES_OF_IDLE = { min: 0.01, max: 0.01, mean: 0.01, stddev: 0, p50: 0.01, p90: 0.01, p99: 0.01 };

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval'] });
});
afterEach(() => {
  vi.useRealTimers();
});

/** Asks nothing by itself, so that the test decides when the loop is busy, and when its timer ticks. */
function madeLag() {
  let nowMs = 0;
  const lag = new LoopLag(() => nowMs);
  vi.clearAllTimers();
  const pass = (ms: number) => (nowMs += ms);
  const tickAfter = (ms: number) => {
    pass(ms);
    vi.advanceTimersByTime(10);
  };
  return { lag, pass, tickAfter };
}

test('the timer runs only after a second in which the loop was busy', () => {
  const { lag } = madeLag();
  lag.ask(IDLE);
  expect(vi.getTimerCount()).toBe(0);
  lag.ask(BUSY);
  lag.ask(BUSY);
  expect(vi.getTimerCount()).toBe(1);
  lag.ask(0);
  expect(vi.getTimerCount()).toBe(0);
});

test('in an idle minute the process is woken 60 times for it, and not 6,000 times', () => {
  const asked = vi.spyOn(LoopLag.prototype, 'ask').mockImplementation(() => {});
  new LoopLag();
  vi.advanceTimersByTime(60_000);
  expect(asked).toHaveBeenCalledTimes(60);
  expect(vi.getTimerCount()).toBe(1);
  asked.mockRestore();
});

test('figures are those since the last scrape; without any the loop had no lag', () => {
  const { lag, tickAfter } = madeLag();
  expect(lag.take()).toEqual(FIGURES_OF_IDLE);
  lag.ask(BUSY);
  for (const ms of [10, 10, 10, 90]) tickAfter(ms);
  const { max, mean, p50 } = lag.take();
  expect(max).toBeCloseTo(0.09, 3);
  expect(mean).toBeCloseTo(0.03, 3);
  expect(p50).toBeCloseTo(0.01, 3);
  expect(lag.take()).toEqual(FIGURES_OF_IDLE);
});

test('time in which the loop was idle is no delay, and delays from before it are kept', () => {
  const { lag, pass, tickAfter } = madeLag();
  lag.ask(BUSY);
  for (const ms of [10, 10, 90]) tickAfter(ms);
  lag.ask(IDLE);
  pass(60_000);
  lag.ask(BUSY);
  tickAfter(10);
  const { max, p50 } = lag.take();
  expect(max).toBeCloseTo(0.09, 3);
  expect(p50).toBeCloseTo(0.01, 3);
});
