/** Connections over real sockets: requests that are sent ahead of their answers, and answers that come early. */
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { request as httpRequest } from 'node:http';
import { connect, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { NO_KEYS } from '../../../services/gateway/tenants/api-keys.ts';
import { Deferred } from '../../../services/lib/async/deferred.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import { makeAuthority } from '../../support/certificates.ts';
import { type FakeGatewayOptions, listeningGateway, spelling } from '../../support/fake-gateway.ts';
import type { FakeModel } from '../../support/fake-workers.ts';

const token = spelling('return self.items');

const KEYS = {
  tenants: [],
  identify: (key: string | undefined) => {
    if (key === 'good') return NO_KEYS.identify(key);
    throw new ServingError('invalid_api_key', 'the API key is not in the file of keys');
  },
};

const listen = (model: Partial<FakeModel> = {}, options: FakeGatewayOptions = {}) =>
  listeningGateway({ token, ...model }, options);

async function certificates() {
  const authority = await makeAuthority();
  onTestFinished(() => authority.remove());
  const { cert, key } = await authority.issue('localhost');
  return { cert: await readFile(cert), key: await readFile(key) };
}

function open(socket: Socket): Socket {
  onTestFinished(() => void socket.destroy());
  return socket.on('error', () => {});
}

/** All bytes that come until the server hangs up. */
async function heard(socket: Socket): Promise<string> {
  const parts: Buffer[] = [];
  socket.on('data', (part) => parts.push(part));
  await new Promise((closed) => socket.once('close', closed));
  return Buffer.concat(parts).toString();
}

const completion = (fields: object = {}, headers = '') => {
  const body = JSON.stringify({ prompt: 'x', max_tokens: 20, ...fields });
  const head = `POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n${headers}`;
  return `${head}content-length: ${body.length}\r\n\r\n${body}`;
};

const statuses = (answers: string) => [...answers.matchAll(/HTTP\/1\.1 (\d+)/g)].map(([, status]) => Number(status));

describe('requests that are sent ahead of their answers', () => {
  test.each([
    ['HTTP', true],
    ['HTTP', false],
    ['TLS', true],
    ['TLS', false],
  ])(
    'all end when their client hangs up, each with its line of the log and its count: over %s, stream %s',
    async (over, stream) => {
      const tls = over === 'TLS' ? await certificates() : undefined;
      const { port, workers, lines, inflight } = await listen({ holdAt: 'in decode' }, { tls });
      const before =
        (await metrics.refused.get()).values.find(({ labels }) => labels.code === 'client_gone')?.value ?? 0;
      const to = { port, host: '127.0.0.1' };
      const socket = open(tls ? connectTls({ ...to, rejectUnauthorized: false }) : connect(to));
      socket.write([0, 1, 2, 3].map((i) => completion({ stream }, `x-request-id: ahead-${i}\r\n`)).join(''));
      await workers.held();
      socket.destroy();
      await workers.idle();
      await inflight.drain(60_000);
      const ended = () => lines.filter(({ message }) => message === 'completion');
      await vi.waitUntil(() => ended().length === 4, 10_000);
      expect(ended()).toEqual(Array(4).fill(expect.objectContaining({ status: 499, code: 'client_gone' })));
      const after = (await metrics.refused.get()).values.find(({ labels }) => labels.code === 'client_gone')!.value;
      expect(after - before).toBe(4);
      expect(workers.prefills).toHaveLength(1); // the others were never begun
    },
  );

  test('as many requests as may wait on one connection are answered in order, and nothing warns of their number', async () => {
    const warnings: string[] = [];
    const warn = ({ name, message }: Error) => void warnings.push(`${name}: ${message}`);
    process.on('warning', warn);
    onTestFinished(() => void process.off('warning', warn));
    const { port } = await listen();
    const socket = open(connect({ port, host: '127.0.0.1', allowHalfOpen: true }));
    const ids = Array.from({ length: 17 }, (_, i) => `ahead-${i}`);
    socket.end(ids.map((id) => completion({ max_tokens: 2, stream: true }, `x-request-id: ${id}\r\n`)).join(''));
    const answers = await heard(socket);
    // A client that has closed its sending side is probed by 100 Continue.
    expect(statuses(answers).filter((status) => status !== 100)).toEqual(Array(17).fill(200));
    expect([...answers.matchAll(/x-request-id: (\S+)/g)].map(([, id]) => id)).toEqual(ids);
    expect(warnings).toEqual([]);
  });

  test('a connection has one request in work, and is closed when more than 16 wait behind it', async () => {
    const { port, workers } = await listen({ holdAt: 'in decode' });
    const socket = open(connect({ port, host: '127.0.0.1' }));
    socket.write(completion().repeat(17));
    await workers.held();
    expect(workers.prefills).toHaveLength(1);
    socket.write(completion());
    expect(await heard(socket)).toBe('');
    await workers.idle();
  });

  test('a client that hangs up in the middle of a body that waits ends the request before it', async () => {
    const { port, workers } = await listen({ holdAt: 'in decode' });
    const socket = open(connect({ port, host: '127.0.0.1' }));
    const upload = 'PUT /v1/repos/a HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-tar\r\n';
    socket.write(`${completion()}${upload}content-length: 9000000\r\n\r\n`);
    socket.write(Buffer.alloc(1_000_000)); // more than the gateway takes in before it reads no more
    await workers.held();
    socket.destroy();
    await workers.idle();
  });

  test('bytes that are not HTTP never stand within an answer', async () => {
    const { port } = await listen({ holdAt: 'in decode' });
    const socket = open(connect({ port, host: '127.0.0.1' }));
    socket.write(completion({ stream: true }));
    await once(socket, 'data');
    const rest = heard(socket);
    socket.write('this is not HTTP\r\n\r\n');
    expect(await rest).not.toContain('HTTP/1.1 400');
  });
});

/** Requests that are refused before their body is read: each has one that is far larger than what fits into buffers. */
const REFUSED: [string, number, string, FakeGatewayOptions?][] = [
  ['a completion without a key', 401, 'POST /v1/completions', { keys: KEYS }],
  ['an upload without a key', 401, 'PUT /v1/repos/a', { keys: KEYS }],
  ['a name of another host', 403, 'POST /v1/completions', { host: '127.0.0.1' }],
  ['an unknown path', 404, 'POST /nothing'],
  ['a method that the route does not take', 405, 'POST /v1/models'],
  ['too large a body', 413, 'POST /v1/completions'],
  ['too many headers', 431, `POST /v1/completions HTTP/1.1\r\n${'a: b\r\n'.repeat(110)}x:`],
  ['an upload that no indexer takes', 503, 'PUT /v1/repos/a'],
];
const BODY = Buffer.alloc(16_000_000, ' ');
const head = (line: string, headers: string) =>
  `${line.includes('HTTP/1.1') ? line : `${line} HTTP/1.1`}\r\nhost: x.example\r\ncontent-type: application/json\r\n${headers}\r\n`;

test('a request does not wait for all those of another tenant that came before it at the same moment', async () => {
  const keys = {
    tenants: [],
    identify: (key: string | undefined) => ({ ...NO_KEYS.identify(key), tenant: key ?? '' }),
  };
  const { port, lines } = await listen({}, { keys });
  const ended = () =>
    lines.flatMap(({ message, request_id }) => (message === 'completion' ? [String(request_id)] : []));
  // Refused as soon as its body is read.
  const refused = (key: string, id: string) =>
    completion({ max_tokens: -1 }, `authorization: Bearer ${key}\r\nx-request-id: ${id}\r\n`);
  const clients = [...Array.from({ length: 20 }, (_, i) => ['attacker', `attacker-${i}`]), ['honest', 'honest']];
  const sockets = clients.map(() => open(connect(port, '127.0.0.1')).resume());
  const ask = (round: number) => {
    for (const [i, [key, id]] of clients.entries()) sockets[i]!.write(refused(key!, `${id}.${round}`));
  };
  ask(1); // from then on their keys are known
  await vi.waitUntil(() => ended().length === clients.length, 10_000);
  lines.length = 0;
  ask(2);
  await vi.waitUntil(() => ended().length === clients.length, 10_000);
  expect(ended().slice(0, 4)).toContain('honest.2');
});

describe('an answer that comes before its request has ended', () => {
  test.each(REFUSED)('a client that reads when it has sent all hears of %s: %i', async (_, status, line, options) => {
    const { port } = await listen({}, options);
    for (const headers of [`content-length: ${BODY.length}\r\n`, 'transfer-encoding: chunked\r\n']) {
      const socket = open(connect({ port, host: '127.0.0.1', allowHalfOpen: true }).pause());
      socket.write(head(line, headers));
      if (headers.startsWith('transfer')) socket.write(`${BODY.length.toString(16)}\r\n`);
      await new Promise((sent) => socket.write(BODY, sent));
      const answer = heard(socket);
      socket.resume();
      socket.end(headers.startsWith('transfer') ? '\r\n0\r\n\r\n' : '');
      expect(statuses(await answer)).toEqual([status]);
    }
  });

  test.each(REFUSED)('the HTTP client of Node hears of %s: %i', async (_, status, line, options) => {
    if (status === 431) return; // it does not send such headers
    const { port } = await listen({}, options);
    const [method, path] = line.split(' ');
    const headers = { host: 'x.example', 'content-type': 'application/json' };
    const call = httpRequest({ port, method, path, headers, agent: false });
    call.on('error', () => {});
    call.end(BODY);
    const [response] = await once(call, 'response');
    expect(response.statusCode).toBe(status);
    expect(JSON.parse((await response.toArray()).join('')).error.code).toMatch(/./);
  });

  test('a client that waits for 100 Continue is refused without its body, and otherwise told to go on', async () => {
    const { port } = await listen({}, { keys: KEYS, indexer: undefined });
    const ask = async (line: string, headers: string) => {
      const socket = open(connect({ port, host: '127.0.0.1' }));
      socket.write(head(line, `expect: 100-continue\r\n${headers}`));
      return heard(socket);
    };
    const key = 'authorization: Bearer good\r\n';
    const refused: [number, string, string][] = [
      [401, 'POST /v1/completions', 'content-length: 99\r\n'],
      [401, 'PUT /v1/repos/a', 'content-length: 99\r\n'],
      [404, 'POST /nothing', 'content-length: 99\r\n'],
      [405, 'POST /v1/models', 'content-length: 99\r\n'],
      [413, 'POST /v1/completions', `${key}content-length: 99000\r\n`],
      [413, 'POST /v1/completions', `${key}content-encoding: gzip\r\ncontent-length: 99000\r\n`],
      [415, 'POST /v1/completions', `${key}content-encoding: odd\r\ncontent-length: 99\r\n`],
      [503, 'PUT /v1/repos/a', `${key}content-length: 99\r\n`],
    ];
    for (const [status, line, headers] of refused) expect(statuses(await ask(line, headers))).toEqual([status]);

    const socket = open(connect({ port, host: '127.0.0.1' }));
    const [start, body] = completion({}, `${key}expect: 100-continue\r\nconnection: close\r\n`).split('\r\n\r\n');
    socket.write(`${start}\r\n\r\n`);
    await once(socket, 'readable');
    const all = heard(socket);
    socket.write(body!);
    expect(statuses(await all)).toEqual([100, 200]);
  });

  const endless: [string, number | undefined][] = [
    ['POST /v1/completions', 401],
    ['PUT /v1/repos/a', 401],
    ['DELETE /v1/repos/a', 401],
    ['GET /v1/models', 401],
    ['GET /metrics', 401],
    ['GET /livez', 200],
    ['POST /nothing', 404],
    ['PUT /v1/models', 405],
  ];
  test.each(endless)('without a key a body that never ends is cut off soon: %s', async (line, status) => {
    const { port } = await listen({}, { keys: KEYS, receiveTimeoutMs: 200, uploadTimeoutMs: 600_000 });
    for (const headers of ['content-length: 100000\r\n', 'transfer-encoding: chunked\r\n']) {
      const socket = open(connect({ port, host: '127.0.0.1', allowHalfOpen: true }));
      socket.write(head(line, headers));
      const byte = headers.startsWith('transfer') ? '1\r\nx\r\n' : 'x';
      const timer = setInterval(() => socket.write(byte), 20);
      onTestFinished(() => clearInterval(timer));
      expect(statuses(await heard(socket))).toEqual([status]);
    }
  });

  test('refusals one after another on a connection leave nothing behind on it', async () => {
    const warnings: string[] = [];
    const warn = ({ name, message }: Error) => void warnings.push(`${name}: ${message}`);
    process.on('warning', warn);
    onTestFinished(() => void process.off('warning', warn));
    const { app, port } = await listen({}, { keys: KEYS });
    const served = once(app.server, 'connection');
    const socket = open(connect({ port, host: '127.0.0.1' }));
    const [end] = (await served) as [Socket];
    const listeners: number[] = [];
    for (let i = 0; i < 20; i++) {
      socket.write(head('POST /v1/completions', `content-length: ${2 ** 20}\r\n`));
      const [answer] = await once(socket, 'data');
      expect(statuses(answer.toString())).toEqual([401]);
      await new Promise((sent) => socket.write(Buffer.alloc(2 ** 20), sent));
      listeners.push(end.eventNames().reduce((sum, name) => sum + end.listenerCount(name), 0));
    }
    expect(listeners).toEqual(Array(20).fill(listeners[0]));
    expect(warnings).toEqual([]);
  });

  test('what is dropped after an answer is bounded', async () => {
    const { port } = await listen({}, { receiveTimeoutMs: 600_000, uploadTimeoutMs: 600_000 });
    const socket = open(connect({ port, host: '127.0.0.1', allowHalfOpen: true }));
    socket.resume();
    socket.write(head('POST /nothing', 'content-length: 99999999999\r\n'));
    let sent = 0;
    const closed = new Promise((done) => socket.once('close', done));
    while (!socket.destroyed && sent < 100) {
      await Promise.race([new Promise((written) => socket.write(BODY, written)), closed]);
      sent++;
    }
    expect(sent).toBeLessThan(100);
  });
});

describe('a gateway that drains', () => {
  const draining = (gateway: { readonly draining: AbortController }) =>
    gateway.draining.abort(new ServingError('draining', 'shutting down'));

  test('a connection that is idle is closed when the gateway begins to drain', async () => {
    const gateway = await listen();
    const socket = open(connect(gateway.port, '127.0.0.1'));
    const all = heard(socket);
    socket.write(completion());
    await vi.waitUntil(() => socket.bytesRead > 0);
    expect(socket.readableEnded).toBe(false);
    draining(gateway);
    expect(statuses(await all)).toEqual([200]);
  });

  test('a request that a client had sent on a kept connection is served, and its connection closes behind the answer', async () => {
    const gateway = await listen();
    const socket = open(connect(gateway.port, '127.0.0.1'));
    const all = heard(socket);
    socket.write(completion());
    await vi.waitUntil(() => socket.bytesRead > 0);
    socket.write(completion({ stream: true }));
    draining(gateway);
    await gateway.app.lastCall.over(60_000);
    await gateway.inflight.drain(60_000);
    const answers = await all;
    expect(statuses(answers)).toEqual([200, 200]);
    expect(answers).toContain('data: [DONE]');
  });

  test('a request that came just before, and is not let in yet, is waited for and served', async () => {
    const gateway = await listen();
    const came = once(gateway.app.server, 'request');
    const socket = open(connect(gateway.port, '127.0.0.1'));
    const all = heard(socket);
    const [headers, body] = completion().split(/(?<=\r\n\r\n)/);
    socket.write(headers!);
    await came;
    draining(gateway);
    let isOver = false;
    const over = gateway.app.lastCall.over(60_000).then(() => {
      isOver = true;
    });
    for (let turn = 0; turn < 10; turn++) await new Promise(setImmediate);
    expect(isOver).toBe(false);
    socket.write(body!);
    await over;
    await gateway.inflight.drain(60_000);
    expect(statuses(await all)).toEqual([200]);
  });

  test('a request that is not let in by the end of the wait is refused', async () => {
    const gateway = await listen();
    const came = once(gateway.app.server, 'request');
    const socket = open(connect(gateway.port, '127.0.0.1'));
    const all = heard(socket);
    const [headers, body] = completion().split(/(?<=\r\n\r\n)/);
    socket.write(headers!);
    await came;
    draining(gateway);
    await gateway.app.lastCall.over(1);
    socket.write(body!);
    expect(statuses(await all)).toEqual([503]);
  });

  test('a connection in work is closed after its answer, so that the next request goes elsewhere', async () => {
    const gateway = await listen();
    const { client } = gateway.workers.decode;
    const { decode } = client;
    const gate = new Deferred<void>();
    client.decode = async function* (request, signal) {
      await gate.promise;
      yield* decode(request, signal);
    };
    const socket = open(connect(gateway.port, '127.0.0.1'));
    const all = heard(socket);
    socket.write(completion({ stream: true }));
    await vi.waitUntil(() => socket.bytesRead > 0);
    draining(gateway);
    gate.resolve();
    const answers = await all;
    expect(statuses(answers)).toEqual([200]);
    expect(answers).toContain('data: [DONE]');
  });

  test('a client that connects then hears that the gateway drains', async () => {
    const gateway = await listen();
    const socket = open(connect(gateway.port, '127.0.0.1'));
    await once(socket, 'connect');
    draining(gateway);
    const all = heard(socket);
    socket.write(completion());
    const answers = await all;
    expect(statuses(answers)).toEqual([503]);
    expect(answers).toContain('"draining"');
  });
});
