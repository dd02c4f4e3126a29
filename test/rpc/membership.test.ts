/** Proof by the system's secret, over real sockets: who is served, who is believed, and what strangers get. */
import { once } from 'node:events';
import { chmod, mkdtemp, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer, connect as dial, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Client, credentials, type ServiceError, status } from '@grpc/grpc-js';
import { afterAll, describe, expect, onTestFinished, test, vi } from 'vitest';
import { writeSystemSecret } from '../../services/lib/process/system-secret.ts';
import { connectDecode, connectIndexer, connectKv, protocol } from '../../services/lib/rpc/contract.ts';
import {
  loadRpcSecurity,
  loadServingSecurity,
  PLAINTEXT,
  type RpcSecurity,
} from '../../services/lib/rpc/credentials.ts';
import { mount, serveRpc, streaming, unary } from '../../services/lib/rpc/server.ts';
import { keepingLog } from '../support/keeping-log.ts';

const SOON = { timeout: 60_000, interval: 10 };
const NEVER = new AbortController().signal;
const dir = await mkdtemp(join(tmpdir(), 'llavacode-secret-'));
afterAll(() => rm(dir, { recursive: true, force: true }));
const files = { rpcCert: '', rpcKey: '', rpcCa: '' };

async function memberOf(system: string): Promise<RpcSecurity> {
  const rpcSecretFile = join(dir, system);
  await writeSystemSecret(rpcSecretFile);
  return loadRpcSecurity({ ...files, rpcSecretFile });
}
const [ours, others] = await Promise.all([memberOf('ours'), memberOf('others')]);

const FRAME = { rows: { data: Buffer.alloc(1 << 20, 7) } };

/** A service that says whose calls arrived, and what it logged. */
async function serve(security: RpcSecurity) {
  const arrived: string[] = [];
  const lines: Record<string, unknown>[] = [];
  const pull = streaming<{ leaseId: string }, typeof FRAME>(async function* ({ leaseId }) {
    arrived.push(leaseId);
    for (let i = 0; i < 20; i++) yield FRAME;
  });
  const kv = mount.kv({
    Pull: pull,
    Renew: unary<{ leaseId: string }, object>(async ({ leaseId }) => {
      arrived.push(leaseId);
      return {};
    }),
    Release: unary(async () => ({ readersLeft: 0 })),
  });
  const server = await serveRpc('127.0.0.1', 0, [kv], security, keepingLog(lines as never));
  onTestFinished(() => server.close(AbortSignal.abort()));
  return { address: server.address, arrived, lines, server };
}

function kvClient(address: string, security?: RpcSecurity) {
  const client = connectKv(address, security);
  onTestFinished(() => client.close());
  return client;
}

const at = (address: string) => Number(address.split(':')[1]);

/** Sockets that are closed when the test ends. */
function open(address: string): Socket {
  const socket = dial(at(address), '127.0.0.1');
  socket.on('error', () => {});
  onTestFinished(() => void socket.destroy());
  return socket;
}

/** A process that listens on a port of its own and does `serveSocket` with every connection. */
async function squat(serveSocket: (socket: Socket) => void): Promise<string> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    serveSocket(socket);
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return `127.0.0.1:${(server.address() as AddressInfo).port}`;
}

describe('members of one system', () => {
  test('members of one system serve each other, in calls of every size and at once', async () => {
    const { address, arrived, lines } = await serve(ours);
    const client = kvClient(address, ours);
    const pull = async (leaseId: string) => {
      let bytes = 0;
      for await (const { rows } of client.pull({ leaseId }, NEVER)) bytes += rows?.data.length ?? 0;
      return bytes;
    };
    expect(await Promise.all(['a', 'b', 'c'].map(pull))).toEqual([20 << 20, 20 << 20, 20 << 20]);
    await client.renew('d', NEVER);
    await kvClient(address.replace('127.0.0.1', 'localhost'), ours).renew('e', NEVER);
    expect(arrived.toSorted()).toEqual(['a', 'b', 'c', 'd', 'e']);
    expect(lines).toEqual([]);
  });

  test('a server that closes takes no more connections, and ends those of members', async () => {
    const { address, server } = await serve(ours);
    await kvClient(address, ours).renew('a', NEVER);
    const silent = open(address);
    await once(silent, 'connect');
    await Promise.all([server.close(new AbortController().signal), once(silent, 'close')]);
    await expect(kvClient(address, ours).renew('b', NEVER)).rejects.toMatchObject({ code: 'worker_lost' });
  });
});

describe('strangers', () => {
  test('a caller without the secret is told so, whatever it calls, and nothing of it arrives', async () => {
    const { address, arrived, lines } = await serve(ours);
    const refused = { code: 'not_a_member', message: expect.stringContaining('members of its system only, and') };
    await expect(kvClient(address, PLAINTEXT).renew('a', NEVER)).rejects.toMatchObject(refused);
    const pull = kvClient(address).pull({ leaseId: 'b' }, NEVER)[Symbol.asyncIterator]();
    await expect(pull.next()).rejects.toMatchObject(refused);
    const indexer = connectIndexer(address);
    onTestFinished(() => indexer.close());
    await expect(indexer.delete({ tenant: 't', repo: 'r' }, NEVER)).rejects.toMatchObject(refused);
    expect(arrived).toEqual([]);
    const refusal = { address: expect.stringMatching(/^127\.0\.0\.1:\d+$/), reason: expect.any(String) };
    expect(lines).toEqual([expect.objectContaining(refusal)]); // one line for all of them
  });

  test('a client of any make gets the status UNAUTHENTICATED, from health and reflection too', async () => {
    const { address } = await serve(ours);
    const client = new Client(address, credentials.createInsecure());
    onTestFinished(() => client.close());
    const call = (path: string) =>
      new Promise<ServiceError | null>((resolve) => {
        client.makeUnaryRequest(
          path,
          (bytes: Buffer) => bytes,
          (bytes) => bytes,
          Buffer.alloc(0),
          resolve,
        );
      });
    for (const path of ['/grpc.health.v1.Health/Check', '/llavacode.v1.Kv/Release', '/no.such.Service/Call']) {
      expect(await call(path)).toMatchObject({ code: status.UNAUTHENTICATED });
    }
  });

  test('a caller with another secret is refused, and both sides say so', async () => {
    const { address, arrived, lines } = await serve(ours);
    await expect(kvClient(address, others).renew('a', NEVER)).rejects.toMatchObject({
      code: 'not_a_member',
      message: expect.stringContaining('has not proven that it belongs to this system'),
    });
    await vi.waitUntil(() => lines.length > 0, SOON);
    expect(arrived).toEqual([]);
  });

  test.each([
    ['makes one up', () => Buffer.alloc(32, 1)],
    ["repeats the server's", (answer: Buffer) => answer.subarray(32)],
  ])('a caller that knows how proofs go and %s is not let in', async (_, proofAfter) => {
    const { address, lines } = await serve(ours);
    const socket = open(address);
    socket.write(Buffer.concat([Buffer.from('llavacode-membership/1\r\n'), Buffer.alloc(32)]));
    const [answer] = (await once(socket, 'data')) as [Buffer];
    expect(answer).toHaveLength(64);
    let more = 0;
    socket.on('data', (bytes: Buffer) => {
      more += bytes.length;
    });
    socket.write(Buffer.concat([proofAfter(answer), Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')]));
    await once(socket, 'close');
    expect(more).toBe(0);
    expect(lines).toEqual([expect.objectContaining({ reason: 'its proof is wrong' })]);
  });

  test('bytes that are no gRPC end the connection and harm nobody', async () => {
    const { address, arrived } = await serve(ours);
    for (const bytes of [
      'GET / HTTP/1.1\r\nhost: a\r\n\r\n',
      'x'.repeat(100_000),
      'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n!!!!!!!!!!!!',
    ]) {
      const socket = open(address);
      socket.resume().end(bytes);
      await once(socket, 'close');
    }
    await kvClient(address, ours).renew('a', NEVER);
    expect(arrived).toEqual(['a']);
  });

  test('connections that say nothing keep no member out', async () => {
    const { address, lines } = await serve(ours);
    const silent = Array.from({ length: 400 }, () => open(address));
    const closed = silent.map((socket) => once(socket.resume(), 'close'));
    await Promise.all(silent.map((socket) => once(socket, 'connect')));
    await kvClient(address, ours).renew('a', NEVER);
    await Promise.all(closed.slice(0, 100)); // the oldest had to go
    expect(lines).toEqual([expect.objectContaining({ reason: expect.stringContaining('more than 256 connections') })]);
  });
});

describe('a process that took the port of a worker', () => {
  test('a server without the secret, or with another one, gets no call', async () => {
    for (const security of [PLAINTEXT, others]) {
      const { address, arrived } = await serve(security);
      await expect(kvClient(address, ours).renew('prompt', NEVER)).rejects.toMatchObject({ code: 'not_a_member' });
      expect(arrived).toEqual([]);
    }
  });

  test('a process that takes whatever comes sees random bytes and no call', async () => {
    let seen = Buffer.alloc(0);
    const address = await squat((socket) => {
      socket.on('data', (bytes: Buffer) => {
        seen = Buffer.concat([seen, bytes]);
        socket.end(Buffer.alloc(64));
      });
    });
    await expect(kvClient(address, ours).renew('prompt', NEVER)).rejects.toMatchObject({ code: 'not_a_member' });
    expect(seen.length).toBeGreaterThan(0);
    expect(seen.includes('prompt')).toBe(false);
    expect(seen.includes('HTTP/2')).toBe(false);
  });

  test('a process that passes the proofs on to a real worker is noticed', async () => {
    const { address, arrived } = await serve(ours);
    const between = await squat((socket) => {
      const behind = open(address);
      socket.pipe(behind).pipe(socket);
    });
    await expect(kvClient(between, ours).renew('prompt', NEVER)).rejects.toMatchObject({ code: 'not_a_member' });
    expect(arrived).toEqual([]);
  });
});

describe('the file of the secret', () => {
  test('a new secret is readable by its user alone, even where a link lay in its place', async () => {
    const [file, elsewhere] = [join(dir, 'fresh'), join(dir, 'elsewhere')];
    await writeFile(elsewhere, 'untouched');
    await symlink(elsewhere, file);
    await writeSystemSecret(file);
    expect((await stat(file)).mode & 0o777).toBe(0o600);
    expect((await stat(elsewhere)).size).toBe('untouched'.length);
  });

  test('a file that is missing or too short is named, and its content is not', async () => {
    const short = join(dir, 'short');
    await writeFile(short, 'hunter2\n', { mode: 0o600 });
    for (const [rpcSecretFile, message] of [
      [short, `--rpc-secret-file ${short} holds 7 characters`],
      ['/no/such', '--rpc-secret-file /no/such: ENOENT'],
    ] as const) {
      const error = await loadRpcSecurity({ ...files, rpcSecretFile }).catch((each) => each);
      expect(error).toMatchObject({ code: 'config_invalid', message: expect.stringContaining(message) });
      expect(error.message).not.toContain('hunter2');
    }
  });

  test('a file that every user of the machine can use is refused; its group may read it', async () => {
    const rpcSecretFile = join(dir, 'open');
    await writeSystemSecret(rpcSecretFile);
    for (const mode of [0o604, 0o602, 0o666]) {
      await chmod(rpcSecretFile, mode);
      const message = `--rpc-secret-file ${rpcSecretFile} has mode ${mode.toString(8)}`;
      await expect(loadRpcSecurity({ ...files, rpcSecretFile })).rejects.toMatchObject({
        code: 'config_invalid',
        message: expect.stringMatching(new RegExp(`^${message}.*chmod 600 ${rpcSecretFile}$`)),
      });
    }
    for (const mode of [0o600, 0o440]) {
      await chmod(rpcSecretFile, mode);
      expect(await loadRpcSecurity({ ...files, rpcSecretFile })).toBeDefined();
    }
  });

  test('a service with a secret may listen beyond its own machine', async () => {
    const exposed = { ...files, rpcSecretFile: join(dir, 'ours'), host: '0.0.0.0', insecureListen: false };
    expect(await loadServingSecurity(exposed)).toMatchObject({ proof: 'secret' });
  });
});

test('a server with a secret answers any service of the protocol', async () => {
  const methods = { Decode: streaming(async function* () {}), Describe: unary(async () => ({ model: 'm' })) };
  const server = await serveRpc('127.0.0.1', 0, [mount.decode(methods)], ours);
  onTestFinished(() => server.close(AbortSignal.abort()));
  const client = connectDecode(server.address, ours);
  onTestFinished(() => client.close());
  expect((await client.describe(NEVER)).model).toBe('m');
  expect(protocol.Decode.service.Describe.path).toContain('Decode');
});
