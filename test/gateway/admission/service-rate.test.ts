import { expect, test } from 'vitest';
import { ServiceRate } from '../../../services/gateway/admission/service-rate.ts';

test('the rate is the prefill rate until enough waiting has been measured', () => {
  const rate = new ServiceRate();
  expect(rate.bounded(1000)).toBe(1000);
  rate.served(40, 0, 400);
  expect(rate.bounded(1000)).toBe(1000);
  rate.served(40, 0, 800);
  expect(rate.bounded(1000)).toBeCloseTo((40 * 0.9 + 40) / (0.4 * 0.9 + 0.4));
});

test('the rate is the lower of both, and the measured one where the prefill rate is not known', () => {
  const rate = new ServiceRate();
  rate.served(100, 0, 1000);
  expect([rate.bounded(50), rate.bounded(1000), rate.bounded(0)]).toEqual([50, 100, 100]);
});

test('time in which nobody waited does not count, and an empty queue forgets the measured rate', () => {
  const rate = new ServiceRate();
  rate.served(100, 0, 1000);
  rate.served(100, 9000, 10_000);
  expect(rate.bounded(0)).toBeCloseTo(100);
  rate.idle();
  expect(rate.bounded(0)).toBe(0);
});
