import { expect, test } from 'vitest';
import { Meter } from '../../../bench/hostile/meter.ts';

test('a meter counts a prompt once, its output token by token, and the time in which a sequence waited', () => {
  let nowMs = 0;
  const meter = new Meter(() => nowMs);
  nowMs = 10;
  const request = meter.sent(2, 100);
  nowMs = 20;
  expect(meter.read()).toEqual({ atMs: 20, tokens: 0, backlogMs: 10, sent: 1, refused: 0 });
  request.received(0, 1);
  request.received(0, 3);
  nowMs = 30;
  expect(meter.read()).toMatchObject({ tokens: 104, backlogMs: 20 }); // the other choice still waits
  request.received(1, 1);
  nowMs = 50;
  expect(meter.read()).toMatchObject({ tokens: 105, backlogMs: 20 });
  request.ended();
  request.ended();
  meter.sent(1, 5).ended();
  nowMs = 60;
  expect(meter.read()).toMatchObject({ tokens: 105, backlogMs: 20, sent: 2 });
  meter.refused('saturated');
  meter.refused('saturated');
  expect(meter.refusals).toEqual({ saturated: 2 });
  expect(meter.read().refused).toBe(2);
});

test('a request that ends before its first token waits no longer', () => {
  let nowMs = 0;
  const meter = new Meter(() => nowMs);
  const request = meter.sent(3, 1);
  nowMs = 7;
  request.ended();
  nowMs = 20;
  expect(meter.read().backlogMs).toBe(7);
});
