import type { lookup } from 'node:dns/promises';
import { afterEach, describe, expect, test } from 'vitest';
import {
  type AddressSource,
  dnsSource,
  registrySource,
  watchAddresses,
  watchSources,
} from '../../../services/gateway/workers/discovery.ts';
import { stayRegistered, WorkerRegistry } from '../../../services/lib/redis/worker-registry.ts';
import { keepingLog } from '../../support/fake-gateway.ts';
import { startRedis } from '../../support/redis.ts';

const cleanups: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});
const log = keepingLog([]);

/** What was told, the latest last. */
function watched(start: (told: (addresses: readonly string[]) => void) => { close(): void; first: Promise<void> }) {
  const told: (readonly string[])[] = [];
  const discovery = start((addresses) => told.push(addresses));
  cleanups.push(() => discovery.close());
  return { told, first: discovery.first };
}

test('addresses that are given are told once', async () => {
  const { told, first } = watched((tell) => watchAddresses(['a:1', 'b:2', 'a:1'], 'prefill', tell, log));
  await first;
  expect(told).toEqual([['a:1', 'b:2']]);
});

test('a host may be called redis', async () => {
  const list = ['redis:7001', 'redis-node-1:7001', 'rediss:1'];
  const { told, first } = watched((tell) => watchAddresses(list, 'prefill', tell, log));
  await first;
  expect(told).toEqual([list]);
});

describe('a source', () => {
  test('is asked again; what it says together with the others is told when it changes', async () => {
    let answers: (string[] | Error)[] = [['a:1'], ['a:1'], ['a:1', 'c:3'], new Error('no answer'), ['c:3']];
    let asked = 0;
    const changing: AddressSource = {
      everyMs: 1,
      list: async () => {
        const answer = answers[Math.min(asked++, answers.length - 1)]!;
        if (answer instanceof Error) throw answer;
        return answer;
      },
      close: () => {
        answers = [];
      },
    };
    const fixed: AddressSource = { everyMs: undefined, list: async () => ['b:2'], close: () => {} };
    const { told } = watched((tell) => watchSources([changing, fixed], tell, log));
    await expect.poll(() => told.at(-1)).toEqual(['c:3', 'b:2']);
    expect(told.slice(-3)).toEqual([
      ['a:1', 'b:2'],
      ['a:1', 'c:3', 'b:2'],
      ['c:3', 'b:2'],
    ]);
    expect(asked).toBeGreaterThanOrEqual(5);
  });

  test('that never answers keeps no other from being asked again', async () => {
    let asked = 0;
    const silent: AddressSource = { everyMs: 1, list: () => new Promise(() => {}), close: () => {} };
    const growing: AddressSource = { everyMs: 1, list: async () => [`a:${++asked}`], close: () => {} };
    const { told } = watched((tell) => watchSources([silent, growing], tell, log));
    await expect.poll(() => told.length).toBeGreaterThan(2);
  });

  test('of DNS is every address of the name, IPv6 in brackets', async () => {
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
});

describe('a registry in Redis', () => {
  test('lists workers by role, and forgets those that do not renew', async () => {
    const redis = await startRedis();
    cleanups.push(() => redis.stop());
    const registry = new WorkerRegistry(redis.url);
    cleanups.push(() => registry.close());
    expect(await registry.list('prefill')).toEqual([]);
    await registry.put('prefill', 'b:2');
    await registry.put('prefill', 'a:1');
    await registry.put('decode', 'c:3');
    await registry.put('decode', 'gone:4', 1);
    expect(await registry.list('prefill')).toEqual(['a:1', 'b:2']);
    await expect.poll(() => registry.list('decode'), { timeout: 20_000 }).toEqual(['c:3']);
    await registry.put('prefill', 'a:1');
    await registry.remove('prefill', 'b:2');
    expect(await registry.list('prefill')).toEqual(['a:1']);
  });

  test('tells a gateway who comes and leaves; while it is away those known stay', async () => {
    const redis = await startRedis();
    cleanups.push(() => redis.stop());
    const leave = stayRegistered(redis.url, ['prefill', 'decode'], 'a:1', log);
    const { told } = watched((tell) => watchAddresses([redis.url], 'decode', tell, log));
    await expect.poll(() => told, { timeout: 10_000 }).toEqual([['a:1']]);
    const other = stayRegistered(redis.url, ['decode'], 'b:2', log);
    await expect.poll(() => told.at(-1), { timeout: 10_000 }).toEqual(['a:1', 'b:2']);
    await leave();
    await expect.poll(() => told.at(-1), { timeout: 10_000 }).toEqual(['b:2']);
    await redis.kill();
    await other();
    expect(told.at(-1)).toEqual(['b:2']);
  });

  test('that lost its entries for a moment loses no worker; one that stays away is dropped', async () => {
    const looks = [['a:1', 'b:2'], [], ['b:2'], [], ['b:2', 'c:3'], ['b:2', 'c:3']];
    const source = registrySource({ list: async () => looks.shift() ?? ['b:2'], close: () => {} }, 'prefill');
    const seen: string[] = [];
    for (let i = 0; i < 8; i++) seen.push((await source.list()).join());
    expect(seen).toEqual([...['a:1,b:2', 'a:1,b:2', 'a:1,b:2', 'a:1,b:2', 'b:2,c:3', 'b:2,c:3', 'b:2,c:3', 'b:2,c:3']]);
    await source.list();
    expect(await source.list()).toEqual(['b:2']);
  });

  test('is not needed', async () => {
    await stayRegistered('', ['prefill'], 'a:1', log)();
  });
});
