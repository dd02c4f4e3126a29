import type { lookup } from 'node:dns/promises';
import { expect, test } from 'vitest';
import { dnsSource, sourcesOf } from '../../../services/gateway/workers/address-sources.ts';
import { keepingLog } from '../../support/keeping-log.ts';

test('a host may be called redis', async () => {
  const list = ['redis:7001', 'redis-node-1:7001', 'rediss:1'];
  const sources = await sourcesOf(list, 'prefill', undefined, keepingLog([]));
  const lists = await Promise.all(sources.map((source) => source.list()));
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
