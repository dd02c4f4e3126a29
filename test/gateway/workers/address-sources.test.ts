import type { lookup } from 'node:dns/promises';
import { expect, test } from 'vitest';
import { dnsSource, registrySource, sourcesOf } from '../../../services/gateway/workers/address-sources.ts';

test('a host may be called redis', async () => {
  const list = ['redis:7001', 'redis-node-1:7001', 'rediss:1'];
  const lists = await Promise.all(sourcesOf(list, 'prefill').map((source) => source.list()));
  expect(lists).toEqual([list]);
});

test('a DNS source gives every address of the name, IPv6 in brackets', async () => {
  const resolve = (async (name: string) => {
    expect(name).toBe('prefill.svc');
    return [
      { address: '10.0.0.2', family: 4 },
      { address: '10.0.0.1', family: 4 },
      { address: 'fd00::1', family: 6 },
    ];
  }) as unknown as typeof lookup;
  expect(await dnsSource('prefill.svc:9000', resolve).list()).toEqual([
    '10.0.0.1:9000',
    '10.0.0.2:9000',
    '[fd00::1]:9000',
  ]);
  expect(await dnsSource('localhost:9000').list()).toEqual(expect.arrayContaining([expect.stringMatching(/:9000$/)]));
});

test('a registry that loses its entries for a moment loses no worker; a worker that stays away is dropped', async () => {
  const looks = [['a:1', 'b:2'], [], ['b:2'], [], ['b:2', 'c:3'], ['b:2', 'c:3']];
  const source = registrySource({ list: async () => looks.shift() ?? ['b:2'], close: () => {} }, 'prefill');
  const seen: string[] = [];
  for (let i = 0; i < 8; i++) seen.push((await source.list()).join());
  expect(seen).toEqual([...['a:1,b:2', 'a:1,b:2', 'a:1,b:2', 'a:1,b:2', 'b:2,c:3', 'b:2,c:3', 'b:2,c:3', 'b:2,c:3']]);
  await source.list();
  expect(await source.list()).toEqual(['b:2']);
});
