import { expect, onTestFinished, test } from 'vitest';
import { stayRegistered, WorkerRegistry } from '../../services/lib/redis/worker-registry.ts';
import { keepingLog } from '../support/keeping-log.ts';
import { startRedis } from '../support/redis.ts';

test('a registry lists workers by role, and forgets those that do not renew', async () => {
  const redis = await startRedis();
  onTestFinished(() => redis.stop());
  const registry = new WorkerRegistry(redis.url);
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

test('a worker without a registry registers nowhere', async () => {
  await stayRegistered('', ['prefill'], 'a:1', keepingLog([]))();
});
