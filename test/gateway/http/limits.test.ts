/** Clients that are slow or huge, and peers that do not speak HTTP, over real sockets. */

import type { AddressInfo } from 'node:net';
import { connect, type Socket } from 'node:net';
import { describe, expect, onTestFinished, test } from 'vitest';
import type { HttpLimits } from '../../../services/gateway/http/limits.ts';
import { fakeGateway, spelling } from '../../support/fake-gateway.ts';

const token = spelling('ab');

async function listen(limits: Partial<HttpLimits>) {
  const gateway = await fakeGateway({ token }, limits);
  await gateway.app.listen({ host: '127.0.0.1', port: 0 });
  onTestFinished(() => {
    gateway.app.server.closeAllConnections();
    return gateway.app.close();
  });
  const { port } = gateway.app.server.address() as AddressInfo;
  return { ...gateway, port };
}

interface Conversation {
  readonly socket: Socket;
  /** All bytes that came until the server hung up. */
  readonly answer: Promise<string>;
}

function speak(port: number, text: string): Conversation {
  const socket = connect(port, '127.0.0.1');
  onTestFinished(() => void socket.destroy());
  socket.on('error', () => {});
  const parts: Buffer[] = [];
  socket.on('data', (part) => parts.push(part));
  socket.write(text);
  const answer = new Promise<string>((done) => socket.on('close', () => done(Buffer.concat(parts).toString())));
  return { socket, answer };
}

/** Sends a byte every 20 ms for ever: never silent, never done. */
function drip({ socket }: Conversation, byte: string): void {
  const timer = setInterval(() => socket.write(byte), 20);
  socket.on('close', () => clearInterval(timer));
  onTestFinished(() => clearInterval(timer));
}

const HEAD = 'POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n';

describe('a client that never comes to an end', () => {
  test('a client whose headers never end is refused and hung up on', async () => {
    const { port } = await listen({ receiveTimeoutMs: 200 });
    const slow = speak(port, `${HEAD}x-slow: `);
    drip(slow, 'a');
    expect(await slow.answer).toMatch(/^HTTP\/1\.1 408 .*"code":"request_timeout"/s);
  });

  test('a client whose body never ends is refused and hung up on, and counts as a refusal', async () => {
    const { port, lines } = await listen({ receiveTimeoutMs: 200 });
    const slow = speak(port, `${HEAD}content-length: 50000\r\n\r\n{"prompt": "`);
    drip(slow, 'a');
    expect(await slow.answer).toMatch(/^HTTP\/1\.1 408 .*connection: close.*"code":"request_timeout"/is);
    await expect
      .poll(() => lines.filter(({ message }) => message === 'completion'))
      .toMatchObject([{ code: 'request_timeout', status: 408 }]);
  });

  test('a client whose upload never ends is hung up on after the time for uploads', async () => {
    const { port } = await listen({ receiveTimeoutMs: 100, uploadTimeoutMs: 500 });
    const slow = speak(
      port,
      'PUT /v1/repos/a HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-tar\r\ncontent-length: 9999\r\n\r\n',
    );
    drip(slow, 'a');
    expect(await slow.answer).toMatch(/^(HTTP\/1\.1 (408|503) |$)/);
  });

  test('clients that never come to an end keep nobody else out', async () => {
    const { port } = await listen({ receiveTimeoutMs: 60_000 });
    for (let i = 0; i < 50; i++) drip(speak(port, `${HEAD}x-slow: `), 'a');
    const answer = await fetch(`http://127.0.0.1:${port}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ prompt: 'x' }),
    });
    expect(answer.status).toBe(200);
  });
});

describe('a client that is too large', () => {
  test('a client whose headers are too large is refused', async () => {
    const { port } = await listen({});
    const huge = speak(port, `${HEAD}x-huge: ${'a'.repeat(20_000)}\r\n\r\n`);
    expect(await huge.answer).toMatch(/^HTTP\/1\.1 431 .*"code":"headers_too_large"/s);
  });

  test('a client that sends too many headers is refused: none of them is dropped in silence', async () => {
    const { port } = await listen({});
    const headers = (count: number) => Array.from({ length: count }, (_, i) => `x-${i}: a\r\n`).join('');
    const end = 'connection: close\r\ncontent-type: application/json\r\ncontent-length: 14\r\n\r\n{"prompt":"x"}';
    const request = (count: number) => `POST /v1/completions HTTP/1.1\r\nhost: x\r\n${headers(count)}${end}`;
    expect(await speak(port, request(96)).answer).toMatch(/^HTTP\/1\.1 200 /);
    for (const count of [97, 500, 1900]) {
      const many = await speak(port, request(count)).answer;
      expect(many).toMatch(/^HTTP\/1\.1 431 .*the request has \d+ headers.*"code":"headers_too_large"/s);
    }
    const upload = `PUT /v1/repos/a HTTP/1.1\r\nhost: x\r\n${headers(97)}${end}`;
    expect(await speak(port, upload).answer).toMatch(/^HTTP\/1\.1 431 /);
  });

  test('a client that announces too large a body is refused', async () => {
    const { port } = await listen({});
    const huge = speak(port, `${HEAD}connection: close\r\ncontent-length: 99999999999\r\n\r\n`);
    expect(await huge.answer).toMatch(/^HTTP\/1\.1 413 .*"code":"payload_too_large"/s);
  });

  test('connections beyond the limit are closed, and the others go on', async () => {
    const { port } = await listen({ maxConnections: 2 });
    const [first, second] = [speak(port, HEAD), speak(port, HEAD)];
    await Promise.all([first, second].map(({ socket }) => new Promise((done) => socket.once('connect', done))));
    expect(await speak(port, HEAD).answer).toBe('');
    first.socket.end('connection: close\r\ncontent-length: 14\r\n\r\n{"prompt":"x"}');
    expect(await first.answer).toMatch(/^HTTP\/1\.1 200 /);
  });
});

describe('an idle connection', () => {
  test('an idle connection is closed after --keep-alive-timeout-ms', async () => {
    const { port } = await listen({ keepAliveTimeoutMs: 50 });
    const idle = speak(port, `${HEAD}content-length: 14\r\n\r\n{"prompt":"x"}`);
    expect(await idle.answer).toMatch(/^HTTP\/1\.1 200 /);
  });

  test('by default it outlives the connections of load balancers, of which some keep them for 600 s', async () => {
    const { app } = await listen({});
    expect(app.server.keepAliveTimeout).toBeGreaterThan(600_000);
  });
});

test.each(['\x16\x03\x01\x02\x00\x01', 'GET / HTTP/9.9\r\n\r\n', 'hello\r\n\r\n', '\0'.repeat(100)])(
  'bytes that are not HTTP get a 400: %j',
  async (text) => {
    const { port } = await listen({});
    expect(await speak(port, text).answer).toMatch(/^HTTP\/1\.1 400 .*"code":"invalid_request"/s);
  },
);
