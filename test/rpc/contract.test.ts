import dns from 'node:dns';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { expect, onTestFinished, test, vi } from 'vitest';
import { connectDecode, connectIndexer, connectKv, connectPrefill } from '../../services/lib/rpc/contract.ts';
import { startPrefill } from '../support/workers.ts';

const NOBODY = '127.0.0.1:1';

test.each(['http_proxy', 'https_proxy', 'grpc_proxy', 'all_proxy', 'HTTP_PROXY'])(
  'no channel goes through the proxy that %s names',
  async (variable) => {
    let connections = 0;
    const proxy = createServer((socket) => {
      connections++;
      socket.destroy();
    });
    await once(proxy.listen(0, '127.0.0.1'), 'listening');
    onTestFinished(() => void proxy.close());
    vi.stubEnv(variable, `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`);
    onTestFinished(() => void vi.unstubAllEnvs());
    const signal = AbortSignal.timeout(30_000);
    const { server } = await startPrefill();
    const prefill = connectPrefill(server.address);
    onTestFinished(() => prefill.close());
    expect(await prefill.describe(signal)).toMatchObject({ role: 'prefill' });
    // Clients of the other services need not reach anybody: what counts is where they do not go.
    const decode = connectDecode(NOBODY);
    const kv = connectKv(NOBODY);
    const indexer = connectIndexer(NOBODY);
    onTestFinished(() => {
      for (const client of [decode, kv, indexer]) client.close();
    });
    await expect(decode.describe(signal)).rejects.toMatchObject({ code: 'worker_lost' });
    await expect(kv.renew('x', signal)).rejects.toMatchObject({ code: 'worker_lost' });
    const short = new AbortController();
    const waiting = indexer.describe(short.signal); // it waits for an indexer to come up
    setTimeout(() => short.abort(), 200);
    await expect(waiting).rejects.toThrow();
    expect(connections).toBe(0);
  },
);

test.each([
  ['a call has waited for it', [3_000]],
  ['calls have waited for it, each for a short time', [1_600, 1_600]],
])('a connection that does not come about is tried anew when %s', async (_, waits) => {
  const { server } = await startPrefill();
  const [host, port] = server.address.split(':');
  let connections = 0;
  // The first connection is as one whose packets are lost: nothing ever comes of it.
  const network = createServer((near) => {
    near.on('error', () => {});
    if (connections++ === 0) return void near.resume();
    const far = connect(Number(port), host);
    far.on('error', () => near.destroy());
    near.on('close', () => far.destroy());
    near.pipe(far).pipe(near);
  });
  await once(network.listen(0, '127.0.0.1'), 'listening');
  onTestFinished(() => void network.close());
  const prefill = connectPrefill(`127.0.0.1:${(network.address() as AddressInfo).port}`);
  onTestFinished(() => prefill.close());
  const now = performance.now.bind(performance);
  let aheadMs = 0;
  const clock = vi.spyOn(performance, 'now').mockImplementation(() => now() + aheadMs);
  onTestFinished(() => clock.mockRestore());
  const givenUpAfter = async (ms: number) => {
    const late = new AbortController();
    const waiting = prefill.describe(late.signal);
    await vi.waitUntil(() => connections > 0, { timeout: 60_000 });
    aheadMs += ms;
    late.abort();
    await expect(waiting).rejects.toThrow();
  };
  await givenUpAfter(0);
  expect(connections, 'a call that is given up at once says nothing of the connection').toBe(1);
  for (const ms of waits) await givenUpAfter(ms);
  expect(await prefill.describe(AbortSignal.timeout(60_000))).toMatchObject({ role: 'prefill' });
  expect(connections).toBe(2);
});

test('a connection that was there and breaks is reported at once, and one that we close is not', async () => {
  const { server } = await startPrefill();
  const [host, port] = server.address.split(':');
  const open = new Set<Socket>();
  const network = createServer((near) => {
    const far = connect(Number(port), host);
    for (const socket of [near, far]) open.add(socket.on('error', () => {}));
    near.pipe(far).pipe(near);
  });
  await once(network.listen(0, '127.0.0.1'), 'listening');
  onTestFinished(() => {
    network.close();
    for (const socket of open) socket.destroy();
  });
  const onBroken = vi.fn();
  const address = `127.0.0.1:${(network.address() as AddressInfo).port}`;
  const prefill = connectPrefill(address, undefined, onBroken);
  const answers = () => prefill.describe(AbortSignal.timeout(60_000));
  await answers();
  for (const socket of open) socket.destroy();
  await vi.waitUntil(() => onBroken.mock.calls.length > 0, { timeout: 60_000 });
  await expect
    .poll(
      () =>
        answers().then(
          ({ role }) => role,
          () => '',
        ),
      { timeout: 60_000 },
    )
    .toBe('prefill');
  prefill.close();
  await new Promise(setImmediate);
  expect(onBroken).toHaveBeenCalledTimes(1);
});

test('a peer that comes back at another address of its name is found soon, and no TXT record is asked for', async () => {
  const { server } = await startPrefill();
  const [host, serves] = server.address.split(':');
  /** Leads from an address to the peer. */
  const door = async (at: string, port: number) => {
    const open = new Set<Socket>();
    const listener = createServer((near) => {
      const far = connect(Number(serves), host);
      for (const socket of [near, far]) open.add(socket.on('error', () => {}));
      near.pipe(far).pipe(near);
    });
    await once(listener.listen(port, at), 'listening');
    const close = () => {
      listener.close();
      for (const socket of open) socket.destroy();
    };
    onTestFinished(close);
    return { port: (listener.address() as AddressInfo).port, close };
  };
  const first = await door('127.0.0.2', 0);
  let address = '127.0.0.2';
  const lookup = vi.spyOn(dns.promises, 'lookup');
  lookup.mockImplementation((async () => [{ address, family: 4 }]) as unknown as typeof dns.promises.lookup);
  const resolveTxt = vi.spyOn(dns.promises, 'resolveTxt').mockRejectedValue(new Error('no such record'));
  onTestFinished(() => void vi.restoreAllMocks());
  const prefill = connectPrefill(`worker.test:${first.port}`);
  onTestFinished(() => prefill.close());
  expect(await prefill.describe(AbortSignal.timeout(60_000))).toMatchObject({ role: 'prefill' });
  first.close();
  // It is asked while the name server does not know yet.
  const asked = lookup.mock.calls.length;
  await vi.waitUntil(
    async () => {
      await prefill.describe(AbortSignal.timeout(60_000)).catch(() => {});
      return lookup.mock.calls.length > asked;
    },
    // gRPC by itself would ask 30 s after the first time.
    { timeout: 25_000 },
  );
  await door('127.0.0.3', first.port);
  address = '127.0.0.3';
  const again = () =>
    prefill.describe(AbortSignal.timeout(60_000)).then(
      ({ role }) => role,
      () => '',
    );
  await expect.poll(again, { timeout: 25_000 }).toBe('prefill');
  expect(resolveTxt).not.toHaveBeenCalled();
}, 120_000);
