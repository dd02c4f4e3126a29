import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { Server as TlsServer } from 'node:https';
import { connect, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { expect, onTestFinished, test } from 'vitest';
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

/** A client that asks for a long answer and does not read it. */
async function askWithoutReading(gateway: FakeGateway): Promise<Socket> {
  const { port, hostname } = new URL(await gateway.app.listen({ port: 0 }));
  const body = JSON.stringify({ prompt: 'x', stream: true, max_tokens: LONG, ignore_eos: true, n: 2 });
  const to = { port: Number(port), host: hostname };
  const overTls = gateway.app.server instanceof TlsServer;
  const socket = overTls ? connectTls({ ...to, rejectUnauthorized: false }) : connect(to);
  onTestFinished(async () => {
    socket.destroy();
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
])(
  'a client that takes nothing of its stream for too long is cut, and log and metrics say so: over %s, it %s',
  async (over, does) => {
    const tls = over === 'TLS' ? await certificates() : undefined;
    const gateway = await fakeGateway(endless, { slowReaderMs: 1_000, tls });
    const before = await refusedFor('slow_reader');
    const socket = await askWithoutReading(gateway);
    if (does === 'goes on sending') {
      socket.write(
        'POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50000\r\n\r\n',
      );
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
