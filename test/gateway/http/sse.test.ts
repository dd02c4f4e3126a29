import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { Server as TlsServer } from 'node:https';
import { connect, type Socket } from 'node:net';
import { Duplex } from 'node:stream';
import { connect as connectTls } from 'node:tls';
import { expect, onTestFinished, test, vi } from 'vitest';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import { makeAuthority } from '../../support/certificates.ts';
import { type FakeGateway, fakeGateway, spelling } from '../../support/fake-gateway.ts';
import { post } from '../../support/post.ts';

const token = spelling('return self.items');

async function refusedFor(code: string): Promise<number> {
  const { values } = await metrics.refused.get();
  return values.find(({ labels }) => labels.code === code)?.value ?? 0;
}

test('a stream consists of server-sent events that no proxy buffers', async () => {
  const { app } = await fakeGateway({ token: spelling('ab') });
  const { headers, payload } = await app.inject({
    method: 'POST',
    url: '/v1/completions',
    headers: { 'x-request-id': 'mine-1' },
    payload: { prompt: 'x', stream: true },
  });
  expect(headers).toMatchObject({
    'content-type': 'text/event-stream; charset=utf-8',
    'cache-control': 'no-cache',
    'x-request-id': 'mine-1',
  });
  expect(payload).toMatch(/^data: \{"id":"cmpl-mine-1"/);
  expect(payload).not.toContain('usage');
});

/** More output than the buffers of two sockets hold. */
const LONG = 25_000;
const endless = { token: () => 70, capacity: LONG + 100 };

/** Bytes that a client holds back, to send them in one piece. */
const held = new WeakMap<Socket, Buffer[]>();

/** A connection that TLS can be spoken over, and whose bytes can be held back. */
function withHold(tcp: Socket): Duplex {
  const duplex = new Duplex({
    read: () => void tcp.resume(),
    write(bytes: Buffer, _, done) {
      const holding = held.get(tcp);
      if (!holding) return void tcp.write(bytes, done);
      holding.push(bytes);
      done();
    },
    destroy(_, done) {
      tcp.destroy();
      done(null);
    },
  });
  tcp.on('data', (bytes) => duplex.push(bytes) || tcp.pause());
  tcp.on('close', () => duplex.destroy());
  tcp.on('error', () => {});
  return duplex;
}

/** Sends texts as records of TLS, all of which the gateway reads in one piece. */
async function sendAtOnce(socket: Socket, texts: readonly string[]): Promise<void> {
  const tcp = tcps.get(socket)!;
  const records: Buffer[] = [];
  held.set(tcp, records);
  for (const text of texts) await new Promise((sent) => socket.write(text, sent));
  held.delete(tcp);
  tcp.write(Buffer.concat(records));
}

/** The connections below those of clients. */
const tcps = new WeakMap<Socket, Socket>();

/** A client that asks for a long answer and does not read it. */
async function askWithoutReading(gateway: FakeGateway): Promise<Socket> {
  const { port, hostname } = new URL(await gateway.app.listen({ port: 0 }));
  const body = JSON.stringify({ prompt: 'x', stream: true, max_tokens: LONG, ignore_eos: true, n: 2 });
  const tcp = connect({ port: Number(port), host: hostname });
  const overTls = gateway.app.server instanceof TlsServer;
  const socket = overTls ? connectTls({ socket: withHold(tcp), rejectUnauthorized: false }) : tcp;
  tcps.set(socket, tcp);
  onTestFinished(async () => {
    socket.destroy();
    tcp.destroy();
    await gateway.workers.idle();
    await gateway.app.close();
  });
  socket.on('error', () => {});
  await once(socket, overTls ? 'secureConnect' : 'connect');
  socket.pause();
  const head = `POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}`;
  socket.write(`${head}\r\n\r\n${body}`);
  return socket;
}

/** Waits until nothing more of an answer fits between the gateway and its client. */
async function untilFull([socket]: unknown[]): Promise<void> {
  let [before, times] = [-1, 0];
  const isFull = () => {
    const { bytesWritten, writableNeedDrain } = socket as Socket;
    times = writableNeedDrain && bytesWritten === before ? times + 1 : 0;
    before = bytesWritten;
    return times >= 5;
  };
  await vi.waitUntil(isFull, { timeout: 30_000, interval: 20 });
}

async function certificates() {
  const authority = await makeAuthority();
  onTestFinished(() => authority.remove());
  const { cert, key } = await authority.issue('localhost');
  return { cert: await readFile(cert), key: await readFile(key) };
}

const completions = ({ lines }: FakeGateway) => lines.filter(({ message }) => message === 'completion');

test('a client that does not read holds no worker: its sequences run to their ends, and others are served', async () => {
  // The only two sequences that the worker takes are those of this client.
  const gateway = await fakeGateway({ ...endless, slots: 1 });
  await askWithoutReading(gateway);
  await expect.poll(() => gateway.workers.decodes.length, { timeout: 30_000 }).toBe(2);
  await gateway.workers.idle();
  const answers = await Promise.all([1, 2, 3].map(() => gateway.complete({ prompt: 'y', max_tokens: 2 })));
  expect(answers.map(({ status }) => status)).toEqual([200, 200, 200]);
  expect(completions(gateway)).toHaveLength(3); // its own is still open
});

test.each([
  ['HTTP', 'sends nothing'],
  ['HTTP', 'goes on sending'],
  ['TLS', 'sends nothing'],
  ['TLS', 'goes on sending'],
])(
  'a client that takes nothing of its stream for too long is cut, and log and metrics say so: over %s, it %s',
  async (over, does) => {
    const tls = over === 'TLS' ? await certificates() : undefined;
    const gateway = await fakeGateway(endless, { slowReaderMs: 1_000, tls });
    const before = await refusedFor('slow_reader');
    const connected = once(gateway.app.server, tls ? 'secureConnection' : 'connection');
    const socket = await askWithoutReading(gateway);
    if (does === 'goes on sending') {
      await untilFull(await connected);
      const head =
        'POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50000\r\n\r\n';
      if (tls) await sendAtOnce(socket, [head, ' ', ' ']);
      else socket.write(head);
      const timer = setInterval(() => socket.write(' '), 5);
      onTestFinished(() => clearInterval(timer));
    }
    await expect.poll(() => gateway.workers.decodes.length, { timeout: 30_000 }).toBe(2);
    await expect.poll(async () => (await metrics.inflight.get()).values[0]!.value, { timeout: 30_000 }).toBe(0);
    // The end of its answer still waits for it.
    let end = '';
    socket.on('data', (part) => {
      end = (end + part.toString()).slice(-1000);
    });
    socket.resume();
    await expect.poll(() => completions(gateway)[0]?.code, { timeout: 30_000 }).toBe('slow_reader');
    expect(await refusedFor('slow_reader')).toBe(before + 1);
    await expect.poll(() => end).toMatch(/"code":"slow_reader".*\[DONE\]/s);
  },
);

test('over TLS, a request that was sent ahead while the answer before it waited is answered, too', async () => {
  const gateway = await fakeGateway(endless, { slowReaderMs: 30_000, tls: await certificates() });
  const connected = once(gateway.app.server, 'secureConnection');
  const socket = await askWithoutReading(gateway);
  await untilFull(await connected);
  const body = JSON.stringify({ prompt: 'sent ahead', max_tokens: 1, echo: true });
  const head = `POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}`;
  await sendAtOnce(socket, [`${head}\r\n\r\n`, ...body]); // a record for each character
  let end = '';
  socket.on('data', (part) => {
    end = (end + part.toString()).slice(-2_000);
  });
  socket.resume();
  await expect.poll(() => end, { timeout: 50_000 }).toMatch(/\[DONE\].*"text":"sent ahead/s);
  expect(completions(gateway).map(({ status, code }) => [status, code])).toEqual([
    [200, undefined],
    [200, undefined],
  ]);
});

test('a client that reads slowly, but reads, gets its whole answer', async () => {
  const gateway = await fakeGateway(endless, { slowReaderMs: 2_000 });
  const socket = await askWithoutReading(gateway);
  let end = '';
  socket.on('data', (part) => {
    end = (end + part.toString()).slice(-100);
    socket.pause();
    setTimeout(() => socket.resume(), 1);
  });
  socket.resume();
  await expect.poll(() => end, { timeout: 50_000 }).toContain('[DONE]');
  expect(completions(gateway)[0]).not.toHaveProperty('code', 'slow_reader');
});

test('headers are sent with the first token, so that a failure before it has a status of its own', async () => {
  const error = new ServingError('worker_lost', 'connection refused');
  const gateway = await fakeGateway({ token, failAt: { stage: 'before first', error } });
  const request = await post(gateway, { prompt: 'x', stream: true });
  const [response] = await once(request, 'response');
  expect(response.statusCode).toBe(503);
  response.resume();
  await gateway.app.close();
});

test('no character of an answer is taken for the end of a line, in events and in JSON', async () => {
  const { app } = await fakeGateway({ token: spelling('ab') });
  const prompt = 's = "a\u2028b\u2029c\u0085d"';
  const ask = async (stream: boolean) => {
    const payload = { prompt, max_tokens: 1, echo: true, stream };
    return (await app.inject({ method: 'POST', url: '/v1/completions', payload })).payload;
  };
  const [events, whole] = [await ask(true), await ask(false)];
  for (const text of [events, whole]) expect(text).not.toMatch(/[\u0085\u2028\u2029]/);
  expect(JSON.parse(whole).choices[0].text).toContain(prompt);
  expect(JSON.parse(events.split('\n\n')[0]!.slice('data: '.length)).choices[0].text).toContain(prompt);
  const refused = await app.inject({ method: 'POST', url: '/v1/completions', payload: { prompt, [prompt]: 1 } });
  expect(refused.payload).not.toMatch(/[\u0085\u2028\u2029]/);
  expect(refused.json().error.param).toBe(prompt);
});
