/** Messages between processes, over real servers. */
import { afterEach, expect, test, vi } from 'vitest';
import { type Message, RedisChannel } from '../../services/lib/redis/channel.ts';
import { RedisConnection } from '../../services/lib/redis/connection.ts';
import { redisCli, startRedis } from '../support/redis.ts';
import { startCluster, startReplicated, startSlowNetwork } from '../support/redis-topologies.ts';

/** Longer than any machine needs. */
const SOON = { timeout: 60_000, interval: 5 };
const ALIVE_EVERY_MS = 50;
const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

function join(url: string) {
  const heard: Message[] = [];
  const redis = new RedisConnection(url);
  const onMessage = (message: Message) => heard.push(message);
  const channel = new RedisChannel({ redis, name: 'test', onMessage, aliveEveryMs: ALIVE_EVERY_MS });
  const leave = () => {
    channel.close();
    redis.close();
  };
  closers.push(leave);
  /** Sends until the message comes back: a channel that is not subscribed yet, or any more, hears nothing. */
  const settle = async () => {
    const nonce = `${Math.random()}`;
    await vi.waitUntil(async () => {
      await channel.publish('nonce', nonce);
      return heard.some(({ body }) => body === nonce);
    }, SOON);
  };
  return { channel, heard, leave, settle };
}

const bodiesOf = (heard: readonly Message[], kind: string) =>
  heard.filter((message) => message.kind === kind).map(({ body }) => body);

async function assertOneOrder(url: string) {
  const members = [join(url), join(url), join(url)];
  for (const { settle } of members) await settle();
  for (let i = 0; i < 30; i++) {
    for (const { channel } of members) void channel.publish('number', `${channel.self} ${i}`);
  }
  await vi.waitUntil(() => members.every(({ heard }) => bodiesOf(heard, 'number').length === 90), SOON);
  const [first, ...others] = members.map(({ heard }) => bodiesOf(heard, 'number'));
  for (const other of others) expect(other).toEqual(first);
  return members;
}

test('all processes hear all messages in one order, and know how many there are', async () => {
  const server = await startRedis();
  closers.push(() => server.stop());
  const [one, two] = await assertOneOrder(server.url);
  await vi.waitUntil(() => one!.channel.alive === 3, SOON);
  two!.leave();
  await vi.waitUntil(() => one!.channel.alive === 2, SOON);
  for (const text of ['x', '1', 'null', '{}', '{"from":1,"kind":"number"}'])
    await redisCli(server.port, 'PUBLISH', 'test', text);
  await one!.settle();
  expect(bodiesOf(one!.heard, 'number').length).toBe(90);
});

test('in a cluster too', async () => {
  const cluster = await startCluster();
  closers.push(() => cluster.stop());
  await assertOneOrder(cluster.url);
}, 120_000);

test('a process hears again after a failover', async () => {
  const replicated = await startReplicated();
  closers.push(() => replicated.stop());
  const [one, two] = [join(replicated.url), join(replicated.url)];
  for (const { settle } of [one, two]) await settle();
  await replicated.failOver();
  for (const { settle } of [one, two]) await settle();
  await vi.waitUntil(() => one.channel.alive === 2, SOON);
}, 120_000);

test('a connection that goes silent is made anew, and a message that Redis has not taken is known not to be', async () => {
  const server = await startRedis();
  closers.push(() => server.stop());
  const network = await startSlowNetwork(server.port);
  closers.push(() => network.stop());
  const member = join(`redis://127.0.0.1:${network.port}`);
  await member.settle();
  network.delayMs = Infinity;
  await vi.waitUntil(async () => !(await member.channel.publish('lost', 1)), SOON);
  network.delayMs = 0;
  await member.settle();
}, 120_000);
