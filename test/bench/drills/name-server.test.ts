/** The name server of the drills against Node's own resolver. */
import { createSocket } from 'node:dgram';
import { Resolver } from 'node:dns/promises';
import { once } from 'node:events';
import { connect } from 'node:net';
import { expect, onTestFinished, test, vi } from 'vitest';
import { NameServer } from '../../../bench/drills/name-server.ts';
import { parseHostPort } from '../../../services/lib/process/host-port.ts';

const NAME = 'llavacode-prefill.code.svc.cluster.local';

async function opened(options?: ConstructorParameters<typeof Resolver>[0]) {
  const server = await NameServer.open('127.0.0.1', 0);
  onTestFinished(() => server.close());
  const resolver = new Resolver(options);
  resolver.setServers([server.address]);
  onTestFinished(() => resolver.cancel());
  return { server, resolver };
}

test('a name has all addresses of its service, and none of another type', async () => {
  const { server, resolver } = await opened();
  server.set(NAME, ['10.0.0.1', '10.0.0.2', '10.0.0.3']);
  const orders = [await resolver.resolve4(NAME), await resolver.resolve4(NAME.toUpperCase())];
  for (const order of orders) expect(order.toSorted()).toEqual(['10.0.0.1', '10.0.0.2', '10.0.0.3']);
  expect(orders[0], 'the order changes, as behind a service').not.toEqual(orders[1]);
  await expect(resolver.resolve6(NAME)).rejects.toMatchObject({ code: 'ENODATA' });
  await expect(resolver.resolveSrv(NAME)).rejects.toMatchObject({ code: 'ENODATA' });
  await expect(resolver.resolve4(`other.${NAME}`)).rejects.toMatchObject({ code: 'ENOTFOUND' });
  server.set(NAME, []);
  await expect(resolver.resolve4(NAME), 'a service without pods').rejects.toMatchObject({ code: 'ENOTFOUND' });
});

test('an answer that is too long for UDP comes over TCP', async () => {
  const { server, resolver } = await opened();
  const addresses = Array.from({ length: 200 }, (_, i) => `10.0.${i % 3}.${i}`);
  server.set(NAME, addresses);
  expect((await resolver.resolve4(NAME)).toSorted()).toEqual(addresses.toSorted());
  expect(server.queries.true, 'once over UDP and once over TCP').toBe(2);
});

test('answers are kept for as long as they are told to be, also that a name does not exist', async () => {
  const { server, resolver } = await opened();
  server.cacheMs = 30_000;
  await expect(resolver.resolve4(NAME)).rejects.toMatchObject({ code: 'ENOTFOUND' });
  server.set(NAME, ['10.0.0.1']);
  await expect(resolver.resolve4(NAME)).rejects.toMatchObject({ code: 'ENOTFOUND' });
  const now = performance.now();
  const clock = vi.spyOn(performance, 'now').mockReturnValue(now + 31_000);
  onTestFinished(() => clock.mockRestore());
  expect(await resolver.resolve4(NAME)).toEqual(['10.0.0.1']);
  server.set(NAME, ['10.0.0.2']);
  expect(await resolver.resolve4(NAME)).toEqual(['10.0.0.1']);
  clock.mockReturnValue(now + 62_000);
  expect(await resolver.resolve4(NAME)).toEqual(['10.0.0.2']);
});

test('it fails, denies and is silent as it is told, and counts what it was asked', async () => {
  const { server, resolver } = await opened({ timeout: 100, tries: 1 });
  server.set(NAME, ['10.0.0.1']);
  server.mood = 'failed';
  await expect(resolver.resolve4(NAME)).rejects.toMatchObject({ code: 'ESERVFAIL' });
  server.mood = 'no such name';
  await expect(resolver.resolve4(NAME)).rejects.toMatchObject({ code: 'ENOTFOUND' });
  server.mood = 'silent';
  await expect(resolver.resolve4(NAME)).rejects.toMatchObject({ code: 'ETIMEOUT' });
  server.mood = 'true';
  expect(await resolver.resolve4(NAME)).toEqual(['10.0.0.1']);
  const { queries } = server;
  for (const mood of ['failed', 'no such name', 'silent', 'true'] as const) {
    expect(queries[mood], mood).toBeGreaterThan(0);
  }
});

test('what is not a query gets a refusal or nothing, and the next query is answered', async () => {
  const { server, resolver } = await opened();
  server.set(NAME, ['10.0.0.1']);
  const socket = createSocket('udp4');
  const { host, port } = parseHostPort(server.address)!;
  onTestFinished(() => void socket.close());
  const asked = async (hex: string) => {
    socket.send(Buffer.from(hex, 'hex'), port, host);
    return ((await once(socket, 'message'))[0] as Buffer).toString('hex');
  };
  expect(await asked('abcd'), 'too short').toBe('abcd84010000000000000000');
  expect(await asked('abcd28000001000000000000'), 'not a query of names').toBe('abcd84040000000000000000');
  expect(await asked('abcd0100000100000000000003616263'), 'cut off').toBe('abcd84010000000000000000');
  expect(await asked('abcd010000010000000000000000ff0003'), 'not of the internet').toBe('abcd84040000000000000000');
  for (const hex of ['ab', 'abcd80000001000000000000']) socket.send(Buffer.from(hex, 'hex'), port, host);
  const stream = connect(port, host);
  onTestFinished(() => void stream.destroy());
  stream.write(Buffer.from('0002ab', 'hex'));
  expect(await resolver.resolve4(NAME)).toEqual(['10.0.0.1']);
});
