/** Clients that close their sending side, over real sockets: some wait for the answer, and some are gone. */
import { readFile } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { expect, onTestFinished, test } from 'vitest';
import { makeAuthority } from '../../support/certificates.ts';
import { type FakeGatewayOptions, listeningGateway, spelling } from '../../support/fake-gateway.ts';
import type { FakeModel } from '../../support/fake-workers.ts';

const token = spelling('return self.items');

const listen = (model: Partial<FakeModel> = {}, options: FakeGatewayOptions = {}) =>
  listeningGateway({ token, ...model }, options);

function completion(stream: boolean, version = '1.1'): string {
  const body = JSON.stringify({ prompt: 'x', max_tokens: 20, stream });
  const head = `POST /v1/completions HTTP/${version}\r\nhost: x\r\ncontent-type: application/json`;
  return `${head}\r\ncontent-length: ${body.length}\r\n\r\n${body}`;
}

/** Sends a request and closes the sending side. @returns all bytes that come until the server hangs up. */
async function sendAndEnd(socket: Socket, text: string): Promise<string> {
  onTestFinished(() => void socket.destroy());
  socket.on('error', () => {});
  const parts: Buffer[] = [];
  socket.on('data', (part) => parts.push(part));
  const closed = new Promise((done) => socket.once('close', done));
  socket.end(text);
  await closed;
  return Buffer.concat(parts).toString();
}

test.each([true, false])('a client that closes its sending side gets its answer (stream: %s)', async (stream) => {
  const { port, workers } = await listen();
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
  const answer = await sendAndEnd(socket, completion(stream));
  expect(answer).toContain('HTTP/1.1 200 OK');
  expect(answer).toContain(stream ? 'data: [DONE]' : 'return self.items');
  await workers.idle();
});

test('a client that hangs up over TLS frees every call', async () => {
  const authority = await makeAuthority();
  onTestFinished(() => authority.remove());
  const { cert, key } = await authority.issue('localhost');
  const tls = { cert: await readFile(cert), key: await readFile(key) };
  const { port, workers } = await listen({ holdAt: 'in decode' }, { tls });
  for (const stream of [true, false]) {
    const socket = connectTls({ port, host: '127.0.0.1', rejectUnauthorized: false });
    socket.on('error', () => {});
    socket.write(completion(stream));
    await workers.held();
    socket.end();
    socket.destroy();
    await workers.idle();
  }
});

test('a client that closes its sending side gets its answer over TLS', async () => {
  const authority = await makeAuthority();
  onTestFinished(() => authority.remove());
  const { cert, key } = await authority.issue('localhost');
  const { port } = await listen({}, { tls: { cert: await readFile(cert), key: await readFile(key) } });
  const options = { port, host: '127.0.0.1', rejectUnauthorized: false };
  const half = { ...options, allowHalfOpen: true }; // which Node's types leave out for TLS
  const socket = connectTls(half);
  expect(await sendAndEnd(socket, completion(false))).toContain('return self.items');
});

test('a client that has closed its sending side and waits is told nothing that is not HTTP', async () => {
  let proceed!: () => void;
  const waiting = new Promise<void>((resolve) => {
    proceed = resolve;
  });
  const { port, workers } = await listen();
  const { prefill } = workers.prefill.client;
  workers.prefill.client.prefill = async function* (request, signal) {
    await waiting;
    yield* prefill(request, signal);
  };
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
  socket.once('data', () => proceed()); // the first probe
  const answer = await sendAndEnd(socket, completion(false));
  expect(answer).toMatch(/^(HTTP\/1\.1 100 Continue\r\n\r\n)+HTTP\/1\.1 200 OK\r\n/);
});

test('many requests at once on one connection are all answered, and nothing warns of their number', async () => {
  const warnings: string[] = [];
  const warn = ({ name }: Error) => void warnings.push(name);
  process.on('warning', warn);
  onTestFinished(() => void process.off('warning', warn));
  const { port } = await listen();
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
  const probe = 'GET /livez HTTP/1.1\r\nhost: x\r\n\r\n';
  const answer = await sendAndEnd(socket, probe.repeat(17));
  expect(answer.match(/HTTP\/1\.1 200 OK/g)).toHaveLength(17);
  expect(warnings).toEqual([]);
});

test('a client of HTTP/1.0 that closes its sending side before the answer is gone', async () => {
  const { port, workers } = await listen({ holdAt: 'before first' });
  const answer = sendAndEnd(connect({ port, host: '127.0.0.1', allowHalfOpen: true }), completion(false, '1.0'));
  expect(await answer).toBe('');
  await workers.idle();
});

test('an idle connection whose client closes its sending side is closed', async () => {
  const { port } = await listen();
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
  expect(await sendAndEnd(socket, '')).toBe('');
});

test('between two lines of JSON a client that has closed its sending side gets spaces, which JSON allows', async () => {
  let proceed!: () => void;
  const probed = new Promise<void>((resolve) => {
    proceed = resolve;
  });
  const { port, workers } = await listen();
  const { decode } = workers.decode.client;
  workers.decode.client.decode = async function* (request, signal) {
    await probed;
    yield* decode(request, signal);
  };
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
  const space = '1\r\n \r\n'; // a chunk of its own
  let seen = '';
  socket.on('data', (part) => {
    seen += part;
    if (seen.includes(space)) proceed();
  });
  const body = JSON.stringify({ model: 'tiny', prompt: 'x' });
  const head = 'POST /api/generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json';
  const answer = await sendAndEnd(socket, `${head}\r\ncontent-length: ${body.length}\r\n\r\n${body}`);
  const chunks = answer.slice(answer.indexOf('\r\n\r\n') + 4).split('\r\n');
  const lines = chunks
    .filter((_, i) => i % 2 === 1)
    .join('')
    .trimEnd()
    .split('\n');
  expect(lines.some((line) => line.startsWith(' '))).toBe(true);
  expect(lines.map((line) => JSON.parse(line).response).join('')).toBe('return self.items');
  await workers.idle();
});
