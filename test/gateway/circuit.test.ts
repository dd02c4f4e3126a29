import { expect, test } from 'vitest';
import { Circuit } from '../../services/gateway/circuit.ts';

test('opens after failures in a row, and lets one through at a time until one succeeds', () => {
  const circuit = new Circuit();
  circuit.failed(0);
  circuit.failed(0);
  expect([circuit.open, circuit.allows(0)]).toEqual([false, true]);
  circuit.failed(0);
  expect([circuit.open, circuit.allows(499), circuit.allows(500)]).toEqual([true, false, true]);
  circuit.tried(500);
  expect([circuit.allows(500), circuit.allows(1000)]).toEqual([false, true]);
  circuit.failed(600);
  expect([circuit.allows(1599), circuit.allows(1600)]).toEqual([false, true]); // twice as long
  for (let i = 0; i < 20; i++) circuit.failed(0);
  expect([circuit.allows(14_999), circuit.allows(15_000)]).toEqual([false, true]); // and no longer than that
  circuit.succeeded();
  expect([circuit.open, circuit.allows(0)]).toEqual([false, true]);
});
