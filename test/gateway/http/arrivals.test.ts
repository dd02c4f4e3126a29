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
  expect(begun).toEqual(['begins', 'made-up-1', 'a1', 'other', 'made-up-2', 'a2', 'undefined', 'a1']);
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
  expect(begun).toEqual(['begins', 'made-up', 'key-4095', 'used-again', 'made-up', 'key-0']);
});
