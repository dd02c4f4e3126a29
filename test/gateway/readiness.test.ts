import { expect, test } from 'vitest';
import { Readiness } from '../../services/gateway/readiness.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { fakeGateway } from '../support/fake-gateway.ts';
import { keepingLog } from '../support/keeping-log.ts';

test('a gateway is ready once both workers have generated something', async () => {
  const { app, readiness, workers } = await fakeGateway({ token: () => 70 });
  expect((await app.inject('/readyz')).statusCode).toBe(503);
  await readiness.check();
  await readiness.first;
  expect(workers.prefills).toHaveLength(1);
  expect(workers.decodes).toHaveLength(1);
  // A worker knows its rate from 64 computed tokens on: without a rate nothing is refused, however much waits.
  expect(workers.prefills[0]!.tokenIds!.length).toBeGreaterThanOrEqual(64);
  expect((await app.inject('/readyz')).statusCode).toBe(200);
});

test('the trial prompt is no longer than small workers can hold', async () => {
  const { readiness, workers } = await fakeGateway({ token: () => 70, capacity: 16 });
  await readiness.check();
  expect(workers.prefills[0]!.tokenIds).toHaveLength(13);
});

test('workers that are up and fail do not make a gateway ready', async () => {
  let usable = true;
  let failure: Error | undefined = new ServingError('runtime_failed', 'no such operator');
  const draining = new AbortController();
  let generations = 0;
  const generate = async () => {
    generations++;
    if (failure) throw failure;
  };
  const readiness = new Readiness({ usable: () => usable, generate, draining: draining.signal, log: keepingLog([]) });
  expect(readiness.problem).toMatch(/has answered yet/);
  await readiness.check();
  expect(readiness.problem).toBe('no such operator');
  failure = undefined;
  await readiness.check();
  await readiness.check();
  await readiness.first;
  expect([readiness.problem, generations]).toEqual([undefined, 2]);
  // New workers must prove it again.
  usable = false;
  await readiness.check();
  expect(readiness.problem).toMatch(/no worker/);
  usable = true;
  await readiness.check();
  expect([readiness.problem, generations]).toEqual([undefined, 3]);
  draining.abort();
  expect(readiness.problem).toBe('shutting down');
});
