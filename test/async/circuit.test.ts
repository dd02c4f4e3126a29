import { expect, test } from 'vitest';
import { CircuitBreaker } from '../../services/lib/async/circuit.ts';

test('opens after failures in a row, and lets one through at a time until one succeeds', () => {
  const circuit = new CircuitBreaker();
  circuit.failed(0);
  circuit.failed(1000);
  for (let i = 0; i < 20; i++) circuit.failed(1000 + i); // a batch: one failure
  expect([circuit.open, circuit.allows(1020)]).toEqual([false, true]);
  circuit.failed(2000);
  expect([circuit.open, circuit.allows(2499), circuit.allows(2500)]).toEqual([true, false, true]);
  circuit.tried(2500);
  expect([circuit.allows(2500), circuit.allows(3000)]).toEqual([false, true]);
  circuit.failed(2600);
  expect([circuit.allows(3599), circuit.allows(3600)]).toEqual([false, true]); // twice as long
  for (let i = 0; i < 20; i++) circuit.failed(10_000 + 100 * i);
  expect([circuit.allows(11_900 + 14_999), circuit.allows(11_900 + 15_000)]).toEqual([false, true]); // no longer
  circuit.succeeded();
  expect([circuit.open, circuit.allows(0)]).toEqual([false, true]);
});

test('work that began before the last failure counted is part of that failure', () => {
  const circuit = new CircuitBreaker({ failures: 2 });
  circuit.failed(1000, 0);
  for (const beganMs of [0, 500, 999]) circuit.failed(5000, beganMs);
  expect(circuit.open).toBe(false);
  circuit.failed(1000, 1000);
  expect(circuit.open).toBe(true);
});
