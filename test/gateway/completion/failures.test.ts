import { once } from 'node:events';
import { request as httpRequest } from 'node:http';
import { connect } from 'node:net';
import { describe, expect, test } from 'vitest';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { type FakeGateway, fakeGateway, spelling } from '../../support/fake-gateway.ts';
import type { Stage } from '../../support/fake-workers.ts';

const STAGES: Stage[] = ['before accepted', 'before first', 'before joined', 'in decode'];
const token = spelling('return self.items');

/** A request on a real socket. */
async function post(gateway: FakeGateway, body: object) {
  const address = new URL(await gateway.app.listen({ port: 0 }));
  const request = httpRequest({
    port: address.port,
    method: 'POST',
    path: '/v1/completions',
    headers: { 'content-type': 'application/json' },
  });
  request.on('error', () => {}); // it is we who hang up
  request.end(JSON.stringify(body));
  return request;
}

/** The line about a completion, once it is written. */
async function completionLine({ lines, app }: FakeGateway) {
  const line = () => lines.find(({ message }) => message === 'completion');
  await expect.poll(line).toBeDefined();
  await app.close();
  return line();
}

describe('a client that hangs up', () => {
  test.each(STAGES.flatMap((stage) => [true, false].map((stream) => [stage, stream] as const)))(
    '%s (stream: %s) frees every call',
    async (stage, stream) => {
      const gateway = await fakeGateway({ token, holdAt: stage });
      const request = await post(gateway, { prompt: 'x', n: 2, stream });
      await gateway.workers.held();
      expect(gateway.workers.open).toBeGreaterThan(0);
      request.destroy();
      await gateway.workers.idle();
      expect(await completionLine(gateway)).toMatchObject({ status: 499, code: 'client_gone' });
    },
  );

  test('during retrieval starts no work at all', async () => {
    let searching!: () => void;
    const search = new Promise<void>((resolve) => {
      searching = resolve;
    });
    let aborted: unknown;
    const gateway = await fakeGateway(
      { token },
      {
        retrieval: {
          retrieve: (_, signal) => {
            searching();
            return new Promise((_, reject) =>
              signal.addEventListener('abort', () => {
                aborted = signal.reason;
                reject(signal.reason);
              }),
            );
          },
        },
      },
    );
    const request = await post(gateway, { prompt: 'x', rag: { repo: 'r' } });
    await search;
    request.destroy();
    expect(await completionLine(gateway)).toMatchObject({ code: 'client_gone' });
    expect(aborted).toMatchObject({ code: 'client_gone' });
    expect(gateway.workers.prefills).toEqual([]);
  });

  test('or does not read holds up its own tokens, and nobody else', async () => {
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
});

describe('a worker that fails', () => {
  test.each(STAGES)('%s ends the request with its error, and every call', async (stage) => {
    const error = new ServingError('kv_truncated', 'the stream broke off');
    const gateway = await fakeGateway({ token, failAt: { stage, error } });
    const answer = await gateway.complete({ prompt: 'x', n: 2 });
    expect(answer).toMatchObject({ status: 500, error: { code: 'kv_truncated', type: 'server_error' } });
    await gateway.workers.idle();
  });

  test('while another still computes ends both', async () => {
    const failAt = { stage: 'before joined', error: new ServingError('saturated', 'no slot') } as const;
    const gateway = await fakeGateway({ token, holdAt: 'before first', failAt });
    expect(await gateway.complete({ prompt: ['x', 'y'], n: 2 })).toMatchObject({ status: 429 });
    await gateway.workers.idle();
  });

  test('being saturated is 429 with Retry-After', async () => {
    const error = new ServingError('saturated', 'the queue is full', { retryAfterSeconds: 2.2 });
    const { complete } = await fakeGateway({ token, failAt: { stage: 'before accepted', error } });
    const answer = await complete({ prompt: 'x' });
    expect(answer).toMatchObject({ status: 429, error: { code: 'saturated', type: 'rate_limit_error' } });
    expect(answer.headers['retry-after']).toBe('3');
  });

  test('by going away is left alone until it answers again', async () => {
    const error = new ServingError('worker_lost', 'connection refused');
    const { complete } = await fakeGateway({ token, failAt: { stage: 'before first', error } });
    expect(await complete({ prompt: 'x' })).toMatchObject({ status: 503, error: { code: 'worker_lost' } });
    const next = await complete({ prompt: 'x' });
    expect(next).toMatchObject({ status: 503, error: { code: 'no_worker' } });
    expect(next.error!.message).toContain('127.0.0.1:1 failed a request (connection refused)');
    expect(next.headers['retry-after']).toBe('1');
  });

  test('after its prompt was computed harms nobody', async () => {
    const gateway = await fakeGateway({ token });
    const { prefill } = gateway.workers;
    const { prefill: whole } = prefill.client;
    prefill.client.prefill = async function* (request, signal) {
      for await (const event of whole(request, signal)) {
        yield event;
        if (event.first) throw new ServingError('worker_lost', 'gone');
      }
    };
    expect(await gateway.complete({ prompt: 'x', max_tokens: 40 })).toMatchObject({ status: 200 });
    await gateway.workers.idle();
  });

  test('by ending early is no silent end of the text', async () => {
    const gateway = await fakeGateway({ token });
    gateway.workers.decode.client.decode = async function* () {};
    expect(await gateway.complete({ prompt: 'x' })).toMatchObject({ status: 503, error: { code: 'worker_lost' } });
    const other = await fakeGateway({ token });
    other.workers.prefill.client.prefill = async function* () {};
    expect(await other.complete({ prompt: 'x' })).toMatchObject({ status: 503, error: { code: 'worker_lost' } });
  });
});

describe('bounds', () => {
  test('more requests than may be in work are 429, and the place is free again afterwards', async () => {
    const gateway = await fakeGateway({ token, holdAt: 'before first' }, { maxInflight: 1 });
    const request = await post(gateway, { prompt: 'x' });
    await gateway.workers.held();
    const refused = await gateway.complete({ prompt: 'y' });
    expect(refused).toMatchObject({ status: 429, error: { code: 'saturated' } });
    expect(refused.error!.message).toContain('--max-inflight');
    expect(refused.headers['retry-after']).toBe('1');
    request.destroy();
    await gateway.workers.idle();
    delete gateway.workers.model.holdAt;
    await expect.poll(async () => (await gateway.complete({ prompt: 'y' })).status).toBe(200);
    await gateway.app.close();
  });

  test('a request past its deadline is aborted', async () => {
    const { complete, workers } = await fakeGateway({ token, holdAt: 'in decode' }, { requestTimeoutMs: 5 });
    const answer = await complete({ prompt: 'x' });
    expect(answer).toMatchObject({ status: 504, error: { code: 'deadline_exceeded' } });
    await workers.idle();
  });

  test('a draining gateway takes nothing new', async () => {
    const { complete, draining } = await fakeGateway({ token });
    draining.abort(new ServingError('draining', 'shutting down'));
    const answer = await complete({ prompt: 'x' });
    expect(answer).toMatchObject({ status: 503, error: { code: 'draining' } });
    // Elsewhere: the connection leads to a process that goes away.
    expect(answer.headers).toMatchObject({ 'retry-after': '1', connection: 'close' });
  });
});

test('headers are sent with the first token, so that a failure before it has its status', async () => {
  const error = new ServingError('saturated', 'the queue is full');
  const gateway = await fakeGateway({ token, failAt: { stage: 'before first', error } });
  const request = await post(gateway, { prompt: 'x', stream: true });
  const [response] = await once(request, 'response');
  expect(response.statusCode).toBe(429);
  response.resume();
  await gateway.app.close();
});
