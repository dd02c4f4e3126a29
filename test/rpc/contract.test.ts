import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
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
