import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { expect, test } from 'vitest';
import { makeTenants, measureMix, untilIdle } from '../../../bench/fairness/measure.ts';
import { FLOOD } from '../../../bench/hostile/attacks.ts';
import { events, gateway, refuse } from '../../support/fake-http.ts';

const HOW = { seconds: 0.5, warmup: 0.1, busy: 2, capacity: 64, timeoutMs: 60_000, seed: 1 };

test('a mix in which a busy tenant gets nothing is not fair, and refusals of honest tenants count as failures', async () => {
  const tenants = makeTenants(0);
  const keyOf = { starved: tenants.busy[1].apiKey, typing: tenants.typing.apiKey, hostile: tenants.hostile.apiKey };
  const url = await gateway((_, { headers }, response) => {
    const is = (key: string) => headers.authorization === `Bearer ${key}`;
    if (is(keyOf.starved)) return; // waits for ever
    if (is(keyOf.typing)) refuse(response, 'quota_exceeded');
    else if (is(keyOf.hostile)) refuse(response, 'saturated');
    else events(response, [1, 2, 3]);
  });
  const { shares, failed, refused, broken, typed, weight } = await measureMix(url, tenants, 3, FLOOD, HOW);
  expect(shares.map(({ tenant }) => tenant)).toEqual(['busy-1-0', 'busy-2-0', 'hostile-0']);
  expect(shares.map((share) => share.weight)).toEqual([3, 1, 1]);
  expect(shares[0]!.tokens).toBeGreaterThan(0);
  expect(shares[1]).toMatchObject({ tokens: 0, backlog: 1 });
  expect({ failed, weight }).toEqual({ failed: { quota_exceeded: typed }, weight: 3 });
  expect(refused['saturated']).toBeGreaterThan(0);
  expect(broken).toContain(`requests of honest tenants failed: ${typed} quota_exceeded`);
});

test('the next mix begins when the gateway has nothing in flight', async () => {
  let looks = 0;
  const server = createServer((_, response) => {
    response.end(`llavacode:requests_inflight{service="gateway"} ${looks++ < 2 ? 3 : 0}\n`);
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  await untilIdle({ url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` });
  expect(looks).toBe(3);
  server.closeAllConnections();
  server.close();
});
