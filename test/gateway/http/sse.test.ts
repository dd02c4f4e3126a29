import { once } from 'node:events';
import { connect } from 'node:net';
import { expect, test } from 'vitest';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { fakeGateway, spelling } from '../../support/fake-gateway.ts';
import { post } from '../../support/post.ts';

const token = spelling('return self.items');

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

test('a client that does not read delays only its own tokens', async () => {
  let reached = 0;
  const endless = (position: number) => {
    reached = Math.max(reached, position);
    return 70;
  };
  const maxTokens = 150_000;
  const gateway = await fakeGateway({ token: endless, capacity: maxTokens + 100 });
  const { port, hostname } = new URL(await gateway.app.listen({ port: 0 }));
  const body = JSON.stringify({ prompt: 'x', stream: true, max_tokens: maxTokens, ignore_eos: true });
  const socket = connect(Number(port), hostname);
  socket.pause();
  const head = `POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}`;
  socket.write(`${head}\r\n\r\n${body}`);
  let before = 0;
  const stalled = () => {
    const same = reached > 1 && reached === before;
    before = reached;
    return same;
  };
  await expect.poll(stalled, { interval: 100, timeout: 30_000 }).toBe(true);
  expect(reached).toBeLessThan(maxTokens - 1);
  const { choices } = await gateway.complete({ prompt: 'y', max_tokens: 2 });
  expect(choices[0]!.finish_reason).toBe('length');
  socket.destroy();
  await gateway.workers.idle();
  await gateway.app.close();
});

test('headers are sent with the first token, so that a failure before it has a status of its own', async () => {
  const error = new ServingError('saturated', 'the queue is full');
  const gateway = await fakeGateway({ token, failAt: { stage: 'before first', error } });
  const request = await post(gateway, { prompt: 'x', stream: true });
  const [response] = await once(request, 'response');
  expect(response.statusCode).toBe(429);
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
