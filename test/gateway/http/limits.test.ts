/** Clients that are slow or huge, and peers that do not speak HTTP, over real sockets. */
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { describe, expect, onTestFinished, test } from 'vitest';
import { NO_KEYS } from '../../../services/gateway/tenants/api-keys.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { makeAuthority } from '../../support/certificates.ts';
import { type FakeGatewayOptions, fakeGateway, spelling } from '../../support/fake-gateway.ts';

const token = spelling('ab');

async function listen(options: FakeGatewayOptions) {
  const gateway = await fakeGateway({ token }, options);
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

function speak(port: number, text: string, over = 'HTTP'): Conversation {
  const to = { port, host: '127.0.0.1' };
  const socket = over === 'TLS' ? connectTls({ ...to, rejectUnauthorized: false }) : connect(to);
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
const BODY = 'content-length: 14\r\n\r\n{"prompt":"x"}';
const LAST = `connection: close\r\n${BODY}`;

const KEYS = {
  tenants: [],
  identify: (key: string | undefined) => {
    if (key === 'good') return NO_KEYS.identify(key);
    throw new ServingError('invalid_api_key', 'the API key is not in the file of keys');
  },
};

async function certificates() {
  const authority = await makeAuthority();
  onTestFinished(() => authority.remove());
  const { cert, key } = await authority.issue('localhost');
  return { cert: await readFile(cert), key: await readFile(key) };
}

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
});

describe.each(['HTTP', 'TLS'])('more connections than --max-connections, over %s', (over) => {
  async function full() {
    const tls = over === 'TLS' ? await certificates() : undefined;
    const gateway = await listen({ maxConnections: 2, tls });
    return { ...gateway, speak: (text: string) => speak(gateway.port, text, over) };
  }
  const begun = ({ socket }: Conversation) => new Promise((done) => socket.once('data', done));

  test('are closed while all others are in use, and those go on', async () => {
    const { speak, workers } = await full();
    const { prefill } = workers.prefill.client;
    let begun = 0;
    let proceed!: () => void;
    const waiting = new Promise<void>((done) => {
      proceed = done;
    });
    workers.prefill.client.prefill = async function* (request, signal) {
      begun++;
      await waiting;
      yield* prefill(request, signal);
    };
    const used = [speak(HEAD + LAST), speak(HEAD + LAST)];
    await expect.poll(() => begun, { timeout: 30_000 }).toBe(2);
    expect(await speak(HEAD + LAST).answer).toBe('');
    proceed();
    for (const { answer } of used) expect(await answer).toMatch(/^HTTP\/1\.1 200 /);
  });

  test('take the place of the one that has been idle longest', async () => {
    const { speak } = await full();
    const first = speak(HEAD + BODY);
    await begun(first);
    const second = speak(HEAD + BODY);
    await begun(second);
    first.socket.write(HEAD + BODY); // now the second has been idle for longer
    await begun(first);
    expect(await speak(HEAD + LAST).answer).toMatch(/^HTTP\/1\.1 200 /);
    expect(await second.answer).toMatch(/^HTTP\/1\.1 200 /);
    first.socket.write(HEAD + LAST);
    expect((await first.answer).match(/HTTP\/1\.1 200 /g)).toHaveLength(3);
  });
});

describe('a client without a valid key', () => {
  const keyed = `${HEAD}authorization: Bearer good\r\n`;

  test('makes room before all who have one, however long those are idle', async () => {
    const { port } = await listen({ maxConnections: 2, keys: KEYS });
    const known = speak(port, keyed + BODY);
    await new Promise((done) => known.socket.once('data', done));
    const stranger = speak(port, HEAD + BODY);
    await new Promise((done) => stranger.socket.once('data', done));
    expect(await speak(port, keyed + LAST).answer).toMatch(/^HTTP\/1\.1 200 /);
    expect(await stranger.answer).toMatch(/^HTTP\/1\.1 401 /);
    known.socket.write(keyed + LAST);
    expect((await known.answer).match(/HTTP\/1\.1 200 /g)).toHaveLength(2);
  });

  test.each([HEAD + BODY, 'GET /livez HTTP/1.1\r\nhost: x\r\n\r\n'])(
    'is kept for --receive-timeout-ms when it is idle, and told so: %j',
    async (text) => {
      const { port } = await listen({ receiveTimeoutMs: 1_000, keys: KEYS });
      expect(await speak(port, text).answer).toMatch(/^HTTP\/1\.1 (401|200) .*\r\nkeep-alive: timeout=1\r\n/s);
    },
  );

  test('is kept for as long as others where no key is needed, or once it has brought one', async () => {
    for (const [keys, text] of [
      [NO_KEYS, 'GET /livez HTTP/1.1\r\nhost: x\r\n\r\n'],
      [KEYS, keyed + BODY],
    ] as const) {
      const { port } = await listen({ keys });
      const { socket } = speak(port, text);
      const [answer] = await once(socket, 'data');
      expect(answer.toString()).toMatch(/\r\nkeep-alive: timeout=620\r\n/i);
    }
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
