import type { IncomingMessage } from 'node:http';
import { setImmediate as nextRound } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { Arrivals } from '../../../services/gateway/http/arrivals.ts';

const request = (key: string | undefined, remoteAddress = '10.0.0.1') =>
  ({
    headers: key === undefined ? {} : { authorization: `Bearer ${key}` },
    socket: { remoteAddress },
  }) as IncomingMessage;

/** @returns what has begun so far, and takes requests under a name. */
function watched(arrivals: Arrivals) {
  const begun: string[] = [];
  const arrive = (name: string, from: IncomingMessage) => arrivals.arrive(from, () => void begun.push(name));
  return { begun, arrive };
}

test('one request begins in each round of the event loop, and clients take turns', async () => {
  const arrivals = new Arrivals();
  arrivals.knows('many', 'attacker');
  arrivals.knows('one', 'honest');
  const { begun, arrive } = watched(arrivals);
  for (let i = 0; i < 60; i++) arrive(`attacker ${i}`, request('many'));
  arrive('honest', request('one'));
  expect(begun).toEqual(['attacker 0']);
  for (let round = 1; round <= 3; round++) {
    await nextRound();
    expect(begun).toHaveLength(round + 1);
  }
  expect(begun).toEqual(['attacker 0', 'attacker 1', 'honest', 'attacker 2']);
  for (let round = 0; round < 60; round++) await nextRound();
  expect(begun.slice(3)).toEqual(Array.from({ length: 58 }, (_, i) => `attacker ${i + 2}`));
});

test('a request that comes alone begins at once, also after others have begun', async () => {
  const { begun, arrive } = watched(new Arrivals());
  arrive('first', request('a'));
  expect(begun).toEqual(['first']);
  await nextRound();
  arrive('second', request('a'));
  expect(begun).toEqual(['first', 'second']);
});

test('all keys of a tenant are one client, and so are all keys from one address that are not known to be valid', async () => {
  const arrivals = new Arrivals();
  arrivals.knows('a1', 'a');
  arrivals.knows('a2', 'a');
  const { begun, arrive } = watched(arrivals);
  arrive('begins', request(undefined));
  for (const key of ['made-up-1', 'made-up-2', undefined]) arrive(String(key), request(key));
  for (const key of ['a1', 'a2', 'a1']) arrive(key, request(key, '10.0.0.2'));
  arrive('other', request('made-up-3', '10.0.0.3'));
  for (let round = 0; round < 8; round++) await nextRound();
  expect(begun).toEqual(['begins', 'a1', 'made-up-1', 'a2', 'other', 'a1', 'made-up-2', 'undefined']);
});

test('no more than 4,096 keys are remembered: those that were used last', async () => {
  const arrivals = new Arrivals();
  arrivals.knows('used-again', 'x');
  for (let i = 0; i < 4_096; i++) {
    arrivals.knows(`key-${i}`, `tenant ${i}`);
    arrivals.knows('used-again', 'x');
  }
  const { begun, arrive } = watched(arrivals);
  arrive('begins', request(undefined));
  for (const key of ['made-up', 'made-up', 'key-0', 'key-4095', 'used-again']) arrive(key, request(key));
  for (let round = 0; round < 5; round++) await nextRound();
  expect(begun).toEqual(['begins', 'key-4095', 'made-up', 'used-again', 'made-up', 'key-0']);
});

test('strangers of any number of addresses take every other turn, and the rest is for tenants', async () => {
  const arrivals = new Arrivals();
  for (const tenant of ['x', 'y']) arrivals.knows(tenant, tenant);
  const { begun, arrive } = watched(arrivals);
  for (let i = 0; i < 1_000; i++) arrive(`stranger ${i}`, request(`made-up-${i}`, `2001:db8::${i.toString(16)}`));
  for (const tenant of ['x', 'y']) arrive(tenant, request(tenant));
  for (let round = 0; round < 4; round++) await nextRound();
  expect(begun.slice(1)).toEqual(['x', 'stranger 1', 'y', 'stranger 2']);
});

test('no more than 4,096 requests wait: one more lets the oldest one of its client begin', () => {
  const arrivals = new Arrivals();
  arrivals.knows('honest', 'honest');
  const { begun, arrive } = watched(arrivals);
  for (let i = 0; i <= 4_096; i++) arrive(`flood ${i}`, request(undefined));
  expect(begun).toEqual(['flood 0']);
  for (let i = 4_097; i < 5_000; i++) arrive(`flood ${i}`, request(undefined));
  expect(begun).toEqual(Array.from({ length: 904 }, (_, i) => `flood ${i}`));
  arrive('honest', request('honest'));
  expect(begun.at(-1)).toBe('honest');
});
