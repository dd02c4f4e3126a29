import { expect, onTestFinished, test } from 'vitest';
import { SystemSecret } from '../../services/lib/process/system-secret.ts';
import { WorkerRegistry } from '../../services/lib/redis/worker-registry.ts';
import { keepingLog } from '../support/keeping-log.ts';
import { redisCli, startRedis } from '../support/redis.ts';

test('a registry lists workers by role, and forgets those that do not renew', async () => {
  const redis = await startRedis();
  onTestFinished(() => redis.stop());
  const registry = new WorkerRegistry(redis.url, undefined, keepingLog([]));
  onTestFinished(() => registry.close());
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

test('a registry with a secret lists workers that know it, and nothing else that is written there', async () => {
  const redis = await startRedis();
  onTestFinished(() => redis.stop());
  const lines: Record<string, unknown>[] = [];
  const open = (secret?: SystemSecret) => {
    const registry = new WorkerRegistry(redis.url, secret, keepingLog(lines));
    onTestFinished(() => registry.close());
    return registry;
  };
  const secret = new SystemSecret('a'.repeat(64));
  const ours = open(secret);
  const entriesOf = (role: string) => redisCli(redis.port, 'ZRANGE', `llavacode:workers:${role}`, '0', '-1');
  const forge = (role: string, entry: string) =>
    redisCli(redis.port, 'ZADD', `llavacode:workers:${role}`, '9999999999999', entry);

  await ours.put('prefill', 'a:1');
  await ours.put('prefill', 'a:1'); // renewed: one entry, not two
  const sealed = await entriesOf('prefill');
  expect(sealed.split('\n')).toHaveLength(1);
  expect(await ours.list('prefill')).toEqual(['a:1']);
  expect(lines).toEqual([]);

  await open().put('prefill', 'plain:2');
  await open(new SystemSecret('b'.repeat(64))).put('prefill', 'other:3');
  await forge('decode', sealed); // a worker of another role
  const [, expires, seal] = sealed.split(' ');
  await forge('prefill', `evil:4 ${expires} ${seal}`);
  await forge('prefill', `a:1 ${Number(expires) + 3_600_000} ${seal}`);
  await forge('prefill', 'evil:5');
  expect(await ours.list('prefill')).toEqual(['a:1']);
  expect(await ours.list('decode')).toEqual([]);
  const told = { level: 'warn', entry: expect.any(String), message: expect.stringContaining('--rpc-secret-file') };
  expect(lines).toEqual([expect.objectContaining(told)]); // once

  // The entry of a worker that has gone cannot be kept: its seal says when it expired.
  const hourAgo = Number(expires) - 3_600_000;
  for (const [address, expiresMs] of [
    ['gone:6', hourAgo],
    ['here:7', hourAgo + 7_200_000],
  ] as const) {
    const own = secret.seal('registry entry', 'decode', address, expiresMs);
    await forge('decode', `${address} ${expiresMs} ${own.toString('base64url')}`);
  }
  expect(await ours.list('decode')).toEqual(['here:7']);

  await ours.remove('prefill', 'a:1');
  expect(await ours.list('prefill')).toEqual([]);
});
