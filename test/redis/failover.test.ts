/** A planned failover: the old master stays reachable, as a replica. Clients come to the new one by themselves. */
import { afterEach, describe, expect, test, vi } from 'vitest';
import { RedisConnection } from '../../services/lib/redis/connection.ts';
import { stayRegistered, WorkerRegistry } from '../../services/lib/redis/worker-registry.ts';
import { keepingLog } from '../support/keeping-log.ts';
import { redisCli, startRedis } from '../support/redis.ts';
import {
  type FailoverTopology,
  startCluster,
  startMovingAddress,
  startReplicated,
  startSentinel,
} from '../support/redis-topologies.ts';

/** Longer than any reconnection takes. Tests wait for events, and the limit is only for a wait that would never end. */
const SOON = { timeout: 120_000, interval: 20 };
vi.setConfig({ testTimeout: 300_000 });

const toStop: (() => unknown)[] = [];
afterEach(async () => {
  for (const stop of toStop.splice(0).reverse()) await stop();
});
function stopping<T extends { stop(): Promise<unknown> }>(started: T): T {
  toStop.push(() => started.stop());
  return started;
}
function connected(url: string): RedisConnection {
  const redis = new RedisConnection(url);
  toStop.push(() => redis.close());
  return redis;
}

const TOPOLOGIES: [string, () => Promise<FailoverTopology>][] = [
  ['one address', startReplicated],
  ['sentinels', startSentinel],
  ['a cluster', () => startCluster(1)],
];

describe.each(TOPOLOGIES)('a failover with %s', (_, start) => {
  test('a worker renews its registration at the new master, and a gateway reads it there', async () => {
    const redis = stopping(await start());
    const gateway = new WorkerRegistry(redis.url, undefined, keepingLog([]));
    toStop.push(() => gateway.close());
    const log = keepingLog([]);
    toStop.push(stayRegistered(redis.url, ['prefill', 'decode'], 'a:1', log));
    const listed = () => gateway.list('decode').catch(() => 'away');
    await expect.poll(listed, SOON).toEqual(['a:1']);
    await redis.failOver();
    // Entries that were replicated do not count.
    await redis.cli('DEL', 'llavacode:workers:prefill');
    await redis.cli('DEL', 'llavacode:workers:decode');
    await vi.waitUntil(async () => (await redis.cli('EXISTS', 'llavacode:workers:prefill')) === '1', SOON);
    await vi.waitUntil(async () => (await redis.cli('EXISTS', 'llavacode:workers:decode')) === '1', SOON);
    await expect.poll(listed, SOON).toEqual(['a:1']);
    // And back.
    await redis.failOver();
    toStop.push(stayRegistered(redis.url, ['decode'], 'b:2', log));
    await expect.poll(listed, SOON).toEqual(['a:1', 'b:2']);
  });
});

describe('one address for a master and its replica', () => {
  test('a write that the old master refuses is sent again until the address leads to the new one', async () => {
    const redis = stopping(await startReplicated());
    const { address } = redis;
    const [old, next] = redis.servers.map(({ port }) => port) as [number, number];
    const client = connected(address.url);
    await client.run((each) => each.set('key', 'before'));
    await redis.demote();
    const before = address.accepted.get(old) as number;
    const written = client.run((each) => each.eval("return redis.call('SET', KEYS[1], ARGV[1])", 1, 'key', 'after'));
    await vi.waitUntil(() => (address.accepted.get(old) as number) > before, SOON);
    address.target = next;
    await written;
    expect(await redisCli(next, 'GET', 'key')).toBe('after');
    expect(await client.run((each) => each.get('key'))).toBe('after');
  });

  test('an address that goes on leading to a replica costs a few connections per second, and the message says so', async () => {
    const redis = stopping(await startReplicated());
    const client = connected(redis.url);
    await client.run((each) => each.get('key'));
    await redis.demote();
    const writes = Array.from({ length: 20 }, (_, i) => client.run((each) => each.set(`key${i}`, 1)));
    for (const outcome of await Promise.allSettled(writes)) {
      expect(outcome).toMatchObject({
        status: 'rejected',
        reason: {
          code: 'store_unavailable',
          message: expect.stringMatching(/READONLY.*the server is a replica, use an address that leads to the master/),
        },
      });
    }
    const [count = 0] = redis.address.accepted.values();
    expect(count).toBeGreaterThan(1);
    expect(count).toBeLessThan(60); // of 20 commands that were each sent again for 5 s
    // A replica is good enough for reads.
    expect(await client.run((each) => each.get('key'))).toBe(null);
  });

  test('a client that only reads comes to the new master too', async () => {
    const redis = stopping(await startReplicated());
    const client = connected(redis.url);
    await client.run((each) => each.get('key'));
    await redis.failOver();
    const next = redis.servers[1]!.port;
    await vi.waitUntil(() => redis.address.accepted.has(next), SOON);
    await redis.cli('SET', 'key', 'after');
    await expect.poll(() => client.run((each) => each.get('key')).catch(() => 'away'), SOON).toBe('after');
  });

  test('a client of a replica stays there while it is up to date, and leaves when it is not', async () => {
    const redis = stopping(await startReplicated());
    const [master, replica] = redis.servers;
    redis.address.target = replica!.port;
    const client = connected(redis.url);
    await redisCli(master!.port, 'SET', 'key', 'value');
    await expect.poll(() => client.run((each) => each.get('key')), SOON).toBe('value');
    await redisCli(replica!.port, 'CONFIG', 'SET', 'replica-serve-stale-data', 'no');
    expect(redis.address.accepted.get(replica!.port)).toBe(1);
    redis.address.target = master!.port;
    master!.pause();
    await redisCli(replica!.port, 'CLIENT', 'KILL', 'TYPE', 'master');
    await vi.waitUntil(() => redis.address.accepted.has(master!.port), SOON);
    master!.resume();
    await expect.poll(() => client.run((each) => each.get('key')).catch(() => 'away'), SOON).toBe('value');
  });

  test('a server that loads its data is left for the one that the address leads to', async () => {
    const debug = ['--enable-debug-command', 'yes', '--loading-process-events-interval-bytes', '1024'];
    const loading = stopping(await startRedis(debug));
    const other = stopping(await startRedis());
    const address = stopping(await startMovingAddress(loading.port));
    await redisCli(other.port, 'SET', 'key', 'other');
    await redisCli(loading.port, 'DEBUG', 'POPULATE', '10000', 'filler', '100');
    const client = connected(address.url);
    await client.run((each) => each.get('key'));
    await redisCli(loading.port, 'CONFIG', 'SET', 'key-load-delay', '10000');
    const reloading = redisCli(loading.port, 'DEBUG', 'RELOAD').catch(() => {});
    await vi.waitUntil(async () => (await redisCli(loading.port, 'GET', 'key')).startsWith('LOADING'), SOON);
    await expect(client.run((each) => each.get('key'), 'never')).rejects.toMatchObject({
      code: 'store_unavailable',
      message: expect.stringContaining('LOADING'),
    });
    address.target = other.port;
    await expect.poll(() => client.run((each) => each.get('key')).catch(() => 'loading'), SOON).toBe('other');
    await loading.kill();
    await reloading;
  });

  test('a command whose outcome is not known is sent again only if it may be carried out twice', async () => {
    const redis = stopping(await startReplicated());
    const client = connected(redis.url);
    await client.run((each) => each.get('key'));
    const [master] = redis.servers;
    for (const [repeat, expected] of [
      ['away', 'fulfilled'],
      ['lost', 'rejected'],
      ['refused', 'rejected'],
      ['never', 'rejected'],
    ] as const) {
      await vi.waitFor(() => client.run((each) => each.get('key')), SOON);
      const sent = client.run(
        (each) => each.call('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'no').then(() => 'sent'),
        'never',
      );
      const after = client.run((each) => each.incr('key'), repeat);
      const [, outcome] = await Promise.allSettled([sent, after]);
      expect([repeat, outcome.status]).toEqual([repeat, expected]);
    }
    expect(Number(await redisCli(master!.port, 'GET', 'key'))).toBe(1);
  });
});

describe('a redis:// URL of another kind of server', () => {
  test('a node of a cluster says at once that redis+cluster:// is needed', async () => {
    const cluster = stopping(await startCluster());
    const { url, port } = cluster.servers[0]!;
    const remedy = `use redis+cluster://127.0.0.1:${port}`;
    await vi.waitUntil(async () => /cluster_size:3/.test(await redisCli(port, 'CLUSTER', 'INFO')), SOON);
    const client = connected(`${url}/0`);
    for (const key of ['a', 'b', 'c', 'd']) {
      await expect(client.run((each) => each.get(key))).rejects.toMatchObject({
        code: 'store_unavailable',
        message: expect.stringContaining(remedy),
      });
    }
    // Without the right to ask, the answers to commands tell.
    await redisCli(port, 'ACL', 'SETUSER', 'limited', 'on', '>pass', '~*', '+@all', '-cluster', '-info');
    const limited = connected(url.replace('redis://', 'redis://limited:pass@'));
    const outcomes = await Promise.allSettled(
      ['a', 'b', 'c', 'd', 'e', 'f'].map((key) => limited.run((each) => each.get(key))),
    );
    const messages = outcomes.flatMap((each) => (each.status === 'rejected' ? [(each.reason as Error).message] : []));
    expect(messages.length).toBeGreaterThan(0);
    for (const message of messages) expect(message).toContain(remedy);
  });

  test('a node that has all slots serves redis:// as any server does', async () => {
    const node = stopping(await startRedis(['--cluster-enabled', 'yes']));
    await redisCli(node.port, 'CLUSTER', 'ADDSLOTSRANGE', '0', '16383');
    await vi.waitUntil(async () => /cluster_state:ok/.test(await redisCli(node.port, 'CLUSTER', 'INFO')), SOON);
    const client = connected(node.url);
    for (const key of ['a', 'b', 'c', 'd']) expect(await client.run((each) => each.get(key))).toBe(null);
  });

  test('a sentinel says that redis+sentinel:// is needed', async () => {
    const set = stopping(await startSentinel());
    const { url, port } = set.servers[2]!;
    await expect(connected(url).run((each) => each.get('key'))).rejects.toMatchObject({
      code: 'store_unavailable',
      message: expect.stringContaining(`use redis+sentinel://127.0.0.1:${port}/MASTER`),
    });
  });
});
