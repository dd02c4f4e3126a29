/** A Redis that is not there, goes away, comes back, hangs or refuses: each is store_unavailable after a short time. */

import { once } from 'node:events';
import { createServer, type Socket } from 'node:net';
import { inspect } from 'node:util';
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import { openStore } from '../../../services/lib/rag/store/open-store.ts';
import type { Store } from '../../../services/lib/rag/store/store.ts';
import { RedisConnection } from '../../../services/lib/redis/connection.ts';
import { type RedisServer, startRedis } from '../../support/redis.ts';

const REPO = 'acme/shop';
const unavailable = { code: 'store_unavailable' };
/** Longer than any retry takes. Tests wait for events, and the limit is only for a wait that would never end. */
const SOON = { timeout: 120_000, interval: 20 };
vi.setConfig({ testTimeout: 300_000 });

describe('a Redis that comes and goes', () => {
  let redis: RedisServer;
  let store: Store;
  beforeEach(async () => {
    redis = await startRedis();
  });
  afterEach(async () => {
    await store.close();
    await redis.stop();
  });

  test('Redis may be started after its clients', async () => {
    await redis.kill();
    store = await openStore(redis.url);
    await expect(store.head(REPO)).rejects.toMatchObject(unavailable);
    await expect(store.lock(REPO, 1_000)).rejects.toMatchObject(unavailable);
    await redis.restart();
    await expect.poll(() => store.head(REPO).catch(() => 'down'), SOON).toBeUndefined();
  });

  test('calls in progress fail when Redis dies, and later ones succeed when it is back', async () => {
    store = await openStore(redis.url);
    const writer = await store.lock(REPO, 30_000);
    redis.pause();
    const caught = Promise.allSettled([store.head(REPO), writer.stored('f'), writer.sweep()]);
    await redis.kill();
    for (const outcome of await caught) {
      expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'store_unavailable' } });
    }
    await expect(store.head(REPO)).rejects.toMatchObject(unavailable);
    await redis.restart();
    await expect.poll(() => store.head(REPO).catch(() => 'down'), SOON).toBeUndefined();
    // The restarted server does not know the lock: the writer must not publish.
    await expect(writer.put('f', [])).rejects.toMatchObject({ code: 'index_locked' });
    await writer.release();
  });

  test('a command that is never answered is given up', async () => {
    store = await openStore(redis.url);
    await store.head(REPO);
    redis.pause();
    await expect(store.head(REPO)).rejects.toMatchObject(unavailable);
    redis.resume();
    await expect.poll(() => store.head(REPO).catch(() => 'down'), SOON).toBeUndefined();
  });
});

test('a removal that dies halfway leaves the index whole or gone, and never counts as lost', async () => {
  const redis = await startRedis();
  const store = await openStore(redis.url);
  const admin = new RedisConnection(redis.url);
  onTestFinished(async () => {
    admin.close();
    await store.close();
    await redis.stop();
  });
  const publishing = await store.lock(REPO, 30_000);
  const head = { version: '1'.repeat(16), fingerprint: 'f', hidden: 1, files: 0, chunks: 0, languages: {} };
  await publishing.publish({ head: { ...head, indexedAt: '2026-01-02T03:04:05.678Z' }, ids: Buffer.alloc(0) });
  await publishing.release();
  for (const denied of ['-srem', '-unlink']) {
    // A writer that may not run the next command stands for one that died before it.
    const rights = ['reset', 'on', '>secret', '~*', '+@all', denied];
    await admin.run((client) => client.call('ACL', 'SETUSER', 'dying', ...rights));
    const dying = await openStore(`redis://dying:secret@127.0.0.1:${redis.port}`);
    const writer = await dying.lock(REPO, 30_000);
    await expect(writer.remove()).rejects.toMatchObject({ code: 'store_unavailable' });
    await writer.release();
    await dying.close();
    expect(await store.head(REPO)).toMatchObject({ version: head.version });
  }
  const writer = await store.lock(REPO, 30_000);
  expect(await writer.remove()).toBe(true);
  expect(await store.head(REPO)).toBeUndefined();
  expect(await writer.remove()).toBe(false);
  await writer.release();
});

describe('a Redis with a password', () => {
  let redis: RedisServer;
  let store: Store;
  beforeEach(async () => {
    redis = await startRedis(['--requirepass', 'open-sesame']);
  });
  afterEach(async () => {
    await store.close();
    await redis.stop();
  });

  test('a client with the password is served', async () => {
    store = await openStore(`redis://:open-sesame@127.0.0.1:${redis.port}`);
    expect(await store.head(REPO)).toBeUndefined();
    expect(store.address).toBe(redis.url);
  });

  test.each(['redis://', 'redis://:wrong-one@', 'redis://user:wrong-one@'])(
    'a login by %s is refused without naming a secret',
    async (scheme) => {
      store = await openStore(`${scheme}127.0.0.1:${redis.port}`);
      const error = await store.head(REPO).then(
        () => undefined,
        (error: Error) => error,
      );
      expect(error).toMatchObject(unavailable);
      expect(error?.message).toContain(redis.url);
      expect(error?.message).toMatch(/NOAUTH|WRONGPASS/);
      expect(inspect(error, { depth: null, showHidden: true })).not.toContain('wrong-one');
    },
  );
});

test('a server that accepts connections and never answers is given up', async () => {
  const sockets = new Set<Socket>();
  const mute = createServer((socket) => sockets.add(socket)).listen(0, '127.0.0.1');
  await once(mute, 'listening');
  const store = await openStore(`redis://127.0.0.1:${(mute.address() as { port: number }).port}`);
  await expect(store.head(REPO)).rejects.toMatchObject(unavailable);
  await store.close();
  for (const socket of sockets) socket.destroy();
  mute.close();
});

test('a text that is not a URL is refused without naming a secret', async () => {
  const error = await openStore('redis://:pass@host:port').catch((error: Error) => error);
  expect(error).toMatchObject({ code: 'config_invalid' });
  expect(inspect(error)).not.toContain('pass@');
});
