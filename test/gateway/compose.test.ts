/** Two gateways, composed as the product is, over one Redis and the same workers. */
import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { inRedis } from '../../services/gateway/rollout/state-store.ts';
import { type ApiKeys, loadApiKeys } from '../../services/gateway/tenants/api-keys.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { type Message, RedisChannel } from '../../services/lib/redis/channel.ts';
import { RedisConnection } from '../../services/lib/redis/connection.ts';
import { type FakeGateway, type FakeGatewayOptions, fakeGateway, spelling } from '../support/fake-gateway.ts';
import type { FakeModel } from '../support/fake-workers.ts';
import { type RedisServer, redisCli, startRedis } from '../support/redis.ts';

const operations = () => readFile(join(PACKAGE_ROOT, 'deploy/OPERATIONS.md'), 'utf8');
/** Longer than any machine needs. */
const SOON = { timeout: 60_000, interval: 5 };
const token = spelling('return self.items');
let server: RedisServer;
const closers: (() => unknown)[] = [];
beforeEach(async () => {
  server = await startRedis();
});
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
  await server.stop();
});

function connection(login = '') {
  const redis = new RedisConnection(server.url.replace('://', `://${login}`));
  closers.push(() => redis.close());
  return redis;
}

/** Two gateways that hear each other. */
async function pair(model: Partial<FakeModel>, options: FakeGatewayOptions = {}, login = '') {
  const one = await fakeGateway({ token, ...model }, { ...options, redis: connection(login) });
  const two = await fakeGateway({ token }, { ...options, redis: connection(login), sameWorkers: one.workers });
  const heard: Message[] = [];
  const channel = new RedisChannel({
    redis: connection(),
    name: 'llavacode:1:gateways',
    onMessage: (message) => heard.push(message),
    aliveEveryMs: 50,
  });
  closers.push(() => channel.close());
  for (const { closing, app } of [one, two]) {
    closers.push(() => {
      closing.abort();
      return app.close();
    });
  }
  await vi.waitUntil(() => channel.alive === 3, SOON); // each of them says so when it hears
  return { one, two, heard };
}

async function keysOf(limits: object): Promise<ApiKeys> {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-compose-'));
  closers.push(() => rm(dir, { recursive: true }));
  const key_sha256 = createHash('sha256').update('key').digest('hex');
  await writeFile(join(dir, 'keys.json'), JSON.stringify([{ key_sha256, tenant: 'acme', repos: ['*'], ...limits }]));
  return loadApiKeys(join(dir, 'keys.json'));
}

async function ask({ app }: FakeGateway, payload: object) {
  const headers = { authorization: 'Bearer key' };
  const answer = await app.inject({ method: 'POST', url: '/v1/completions', headers, payload });
  const { error, usage } = answer.json();
  return { status: answer.statusCode, code: error?.code, message: error?.message, usage };
}

describe('sessions', () => {
  test('a newer request of a session ends the older one at another gateway, and no name is sent in clear', async () => {
    const { one, two, heard } = await pair({ holdAt: 'in decode' });
    const older = one.complete({ prompt: 'x', session: 'window of ann' });
    await one.workers.held();
    delete one.workers.model.holdAt;
    const newer = two.complete({ prompt: 'xy', session: 'window of ann' });
    expect(await older).toMatchObject({ status: 409, error: { code: 'superseded' } });
    expect(await newer).toMatchObject({ status: 200 });
    await expect.poll(() => heard.filter(({ kind }) => kind === 'session').length).toBe(2);
    expect(JSON.stringify(heard)).not.toContain('ann');
    await one.workers.idle();
  });

  test('another gateway sends the next prompt of a session to the worker that has the last one', async () => {
    const { one, two } = await pair({ prefillTokensPerSecond: 1_000 }, { morePrefill: ['has-it'] });
    one.pool.setPrefill(['has-it']);
    await one.pool.refresh();
    let number = 0;
    const workerOf = async (gateway: FakeGateway, session: string) => {
      const before = gateway.lines.length;
      await gateway.complete({ prompt: Array(200).fill(65), session });
      const line = () => gateway.lines.slice(before).find(({ message }) => message === 'completion');
      await vi.waitUntil(line, SOON);
      return line()!.prefill;
    };
    // Without news it would take turns between both workers. The first news may still be on their way.
    let inARow = 0;
    await vi.waitUntil(async () => {
      const session = `s${number++}`;
      expect(await workerOf(one, session)).toEqual(['has-it']);
      inARow = `${await workerOf(two, session)}` === 'has-it' ? inARow + 1 : 0;
      return inARow === 6;
    }, SOON);
  });
});

describe('limits of a tenant', () => {
  test('sequences in flight are counted over both gateways, and are free again at the end', async () => {
    const { one, two } = await pair({ holdAt: 'in decode' }, { keys: await keysOf({ max_inflight: 4 }) });
    const held = ask(one, { prompt: 'x', n: 3, session: 's' });
    await one.workers.held();
    expect(await ask(two, { prompt: 'x', n: 2 })).toMatchObject({
      status: 429,
      code: 'quota_exceeded',
      message: expect.stringContaining('tenant acme has 3 of its 4 sequences in flight, and the request asks for 2'),
    });
    delete one.workers.model.holdAt;
    expect(await ask(two, { prompt: 'x', n: 1 })).toMatchObject({ status: 200 });
    // The request that it supersedes does not keep it out, though that is at the other gateway.
    expect(await ask(two, { prompt: 'x', n: 4, session: 's' })).toMatchObject({ status: 200 });
    expect(await held).toMatchObject({ code: 'superseded' });
    await vi.waitUntil(async () => (await ask(one, { prompt: 'x', n: 4 })).status === 200, SOON);
    expect(await ask(one, { prompt: 'x', n: 5 })).toMatchObject({ status: 400, code: 'invalid_request' });
  });

  test('tokens per minute are those of both gateways', async () => {
    const { one, two } = await pair({}, { keys: await keysOf({ tokens_per_minute: 25 }) });
    const payload = { prompt: Array(10).fill(5), max_tokens: 10, ignore_eos: true };
    expect(await ask(one, payload)).toMatchObject({ status: 200 });
    expect(await ask(two, payload)).toMatchObject({ status: 429, code: 'quota_exceeded' });
  });

  test('without Redis each gateway grants the limits alone, and no request fails or hangs', async () => {
    const { one, two } = await pair({ holdAt: 'in decode' }, { keys: await keysOf({ max_inflight: 2 }) });
    await server.stop();
    const held = [ask(one, { prompt: 'x', n: 2, session: 's' }), ask(two, { prompt: 'x', n: 2, session: 's' })];
    await vi.waitUntil(() => one.workers.decodes.length === 4, SOON);
    expect(await ask(one, { prompt: 'x' })).toMatchObject({ status: 429, code: 'quota_exceeded' });
    delete one.workers.model.holdAt;
    for (const gateway of [one, two]) {
      expect(await ask(gateway, { prompt: 'x', session: 's' })).toMatchObject({ status: 200 });
    }
    for (const older of held) expect(await older).toMatchObject({ code: 'superseded' });
  });

  test('the rights of a gateway that OPERATIONS.md lists are enough, and let it write nothing of an index', async () => {
    const [, rights = ''] = /\*\*ACLs\.\*\* The gateway needs `([^`]+)`/.exec(await operations())!;
    await redisCli(server.port, 'ACL', 'SETUSER', 'gateway', 'on', '>word', ...rights.split(/\s+/));
    const keys = await keysOf({ tokens_per_minute: 25 });
    const { one, two } = await pair({}, { keys }, 'gateway:word@');
    const payload = { prompt: Array(10).fill(5), max_tokens: 10, ignore_eos: true };
    expect(await ask(one, payload)).toMatchObject({ status: 200 });
    expect(await ask(two, payload)).toMatchObject({ status: 429, code: 'quota_exceeded' });
    const redis = connection('gateway:word@');
    await expect(redis.run((client) => client.hset('llavacode:1:{shop}:index', 'head', 'x'))).rejects.toThrow('NOPERM');
  });

  test('with rollouts the rights that OPERATIONS.md adds are enough, and let a gateway write nothing of an index', async () => {
    const text = await operations();
    const [, rights = ''] = /\*\*ACLs\.\*\* The gateway needs `([^`]+)`/.exec(text)!;
    const [, more = ''] = /With `--rollouts` it needs `([^`]+)` as well/.exec(text)!;
    await redisCli(server.port, 'ACL', 'SETUSER', 'rolling', 'on', '>word', ...`${rights} ${more}`.split(/\s+/));
    const redis = connection('rolling:word@');
    const state = {
      bundle: '/b',
      fingerprint: 'a'.repeat(64),
      indexer: '',
      share: 1,
      by: 'tenant',
      promoted: false,
    } as const;
    const store = inRedis(redis);
    await store.write(state);
    expect(await store.read()).toEqual(state);
    await store.write(undefined);
    await expect(redis.run((client) => client.set('llavacode:1:{shop}:index', 'x'))).rejects.toThrow('NOPERM');
    await expect(redis.run((client) => client.del('llavacode:1:{shop}:index'))).rejects.toThrow('NOPERM');
  });

  test('a tenant without limits leaves nothing in Redis', async () => {
    const { one } = await pair({}, { keys: await keysOf({}) });
    expect(await ask(one, { prompt: 'x', n: 8 })).toMatchObject({ status: 200 });
    expect(await redisCli(server.port, 'KEYS', '*')).toBe('');
  });
});

test('what a gateway serves is told to the others, and to nobody while it serves nothing', async () => {
  const { one, heard } = await pair({}, { keys: await keysOf({}) });
  type News = { totals: [string, number, number][]; waiting: unknown[]; held: unknown[]; blocked: unknown[] };
  const news = () => heard.filter(({ kind }) => kind === 'service').map(({ body }) => body as News);
  expect(news()).toEqual([]);
  const { usage } = await ask(one, { prompt: [5, 5, 5], n: 2, max_tokens: 10 });
  // What was charged and not computed is given back: a part of the prompt was cached, and choices may end early.
  const computed = usage.total_tokens - usage.prompt_tokens_details.cached_tokens;
  const told = () => news().flatMap(({ totals }) => totals.map(([tenant, total]) => [tenant, total]));
  await vi.waitUntil(() => told().at(-1)?.[1] === computed && news().at(-1)?.held.length === 0, SOON);
  expect(new Set(told().map(([tenant]) => tenant))).toEqual(new Set(['acme']));
  expect(news().flatMap(({ waiting, blocked }) => [...waiting, ...blocked])).toEqual([]);
});
