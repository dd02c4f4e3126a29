import { type AddressInfo, connect } from 'node:net';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { NO_KEYS } from '../../../services/gateway/tenants/api-keys.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { fakeGateway, spelling } from '../../support/fake-gateway.ts';
import type { Trouble } from '../../support/fake-workers.ts';

const token = spelling('ab');

describe('routes', () => {
  test('without keys a gateway on loopback serves its own machine alone: no web page gets in by a host name of its own', async () => {
    const { app } = await fakeGateway({ token }, { host: '127.0.0.1' });
    const ask = async (host: string, url = '/v1/models') => (await app.inject({ url, headers: { host } })).statusCode;
    for (const host of ['localhost', '127.0.0.1:8000', '[::1]:8000', 'LOCALHOST:1']) expect(await ask(host)).toBe(200);
    for (const host of ['evil.example', 'localhost.evil.example:8000', '10.0.0.1', '[fd00::1]:8000']) {
      for (const url of ['/v1/models', '/v1/repos', '/metrics', '/nothing']) expect(await ask(host, url)).toBe(403);
    }
    // No browser leaves out Host; load balancers' probes of HTTP/1.0 do.
    await app.listen({ host: '127.0.0.1', port: 0 });
    const { port } = app.server.address() as AddressInfo;
    for (const url of ['/livez', '/metrics', '/v1/models']) {
      const socket = connect(port, '127.0.0.1').setEncoding('utf8');
      socket.write(`GET ${url} HTTP/1.0\r\n\r\n`);
      expect((await socket.toArray()).join('')).toMatch(/^HTTP\/1\.1 200 /);
    }
    await app.close();
    const open = await fakeGateway({ token });
    expect((await open.app.inject({ url: '/v1/models', headers: { host: 'llm.example' } })).statusCode).toBe(200);
  });

  const refusals: [string, object, number, string, field?: string][] = [
    ['an unknown path', { method: 'GET', url: '/v2/nothing?x' }, 404, 'not_found'],
    ['another method', { method: 'GET', url: '/v1/completions' }, 405, 'method_not_allowed'],
    ['another method on a model', { method: 'DELETE', url: '/v1/models/tiny' }, 405, 'method_not_allowed'],
    ['broken JSON', { payload: '{"prompt": ' }, 400, 'invalid_request'],
    ['no body', { payload: '' }, 400, 'invalid_request'],
    ['an array', { payload: '[]' }, 400, 'invalid_request'],
    ['a prototype', { payload: '{"prompt":"x","__proto__":{"n":2}}' }, 400, 'invalid_request', '__proto__'],
    [
      'another content type',
      { headers: { 'content-type': 'text/plain' }, payload: 'x' },
      415,
      'unsupported_media_type',
    ],
    ['too large a body', { payload: JSON.stringify({ prompt: 'x'.repeat(70_000) }) }, 413, 'payload_too_large'],
    ['a broken path', { method: 'GET', url: '/v1/models/%E0%A4%A' }, 400, 'invalid_request'],
  ];
  test.each(refusals)('%s is refused in OpenAI’s shape', async (_, request, status, code, field) => {
    const { app } = await fakeGateway({ token });
    const headers = { 'content-type': 'application/json' };
    const answer = await app.inject({ method: 'POST', url: '/v1/completions', headers, ...request });
    expect(answer.statusCode).toBe(status);
    expect(answer.json()).toEqual({
      error: { message: expect.any(String), type: 'invalid_request_error', param: field ?? null, code },
    });
    expect(answer.headers['x-request-id']).toMatch(/./);
    if (status === 405) expect(answer.headers.allow).toMatch(/^(GET|POST)$/);
  });
});

describe('the request id', () => {
  test.each([
    ['my-id.1:2', 'my-id.1:2'],
    ['no spaces', /^[0-9a-f]{32}$/],
    ['x'.repeat(129), /^[0-9a-f]{32}$/],
  ])('the request id %s is taken if it is harmless, and given back', async (given, expected) => {
    const { app } = await fakeGateway({ token });
    const headers = { 'x-request-id': given };
    const answer = await app.inject({ method: 'POST', url: '/v1/completions', headers, payload: { prompt: 'x' } });
    expect(answer.headers['x-request-id']).toEqual(
      typeof expected === 'string' ? expected : expect.stringMatching(expected),
    );
    expect(answer.json().id).toBe(`cmpl-${answer.headers['x-request-id']}`);
  });
});

describe('the log', () => {
  test('the log tells the cause of an unexpected failure, the answer does not', async () => {
    const error = new TypeError('secret internals');
    const gateway = await fakeGateway({ token, failAt: { stage: 'before first', error } });
    const answer = await gateway.complete({ prompt: 'x' });
    expect(answer).toMatchObject({ status: 500, error: { code: 'internal', type: 'server_error' } });
    expect(answer.error!.message).not.toContain('secret');
    expect(answer.error!.message).toContain(String(answer.headers['x-request-id']));
    await expect
      .poll(() => gateway.lines.find(({ message }) => message === 'completion'))
      .toMatchObject({
        err: { message: 'secret internals' },
      });
  });
});

test('refused keys are logged once a second, without the keys', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  onTestFinished(() => void vi.useRealTimers());
  const identify = (key: string | undefined) => {
    if (key === 'good') return NO_KEYS.identify(key);
    throw new ServingError('invalid_api_key', 'the API key is not in the file of keys');
  };
  const { app, lines } = await fakeGateway({ token }, { keys: { tenants: [], identify } });
  const ask = async (key: string) =>
    (await app.inject({ url: '/v1/models', headers: { authorization: `Bearer ${key}` } })).statusCode;
  expect(await ask('good')).toBe(200);
  for (let i = 0; i < 5; i++) expect(await ask(`qzsecret-${i}`)).toBe(401);
  const refusals = () => lines.filter(({ message }) => message === 'API key refused');
  expect(refusals()).toMatchObject([
    { level: 'warn', requests: 1, client: '127.0.0.1', reason: expect.stringContaining('not in the file') },
  ]);
  vi.advanceTimersByTime(1_000);
  expect(refusals().map(({ requests }) => requests)).toEqual([1, 4]);
  expect(JSON.stringify(lines)).not.toContain('qzsecret');
});

test('workers that stay full make 429 for a request without output, after several tries', async () => {
  let tries = 0;
  const trouble = ({ stage }: Trouble): undefined => {
    if (stage !== 'before accepted') return;
    tries++;
    throw new ServingError('saturated', 'the queue is full', { retryAfterSeconds: 1 });
  };
  const { complete } = await fakeGateway({ token, trouble });
  const answer = await complete({ prompt: 'x' });
  expect(answer).toMatchObject({ status: 429, error: { code: 'saturated', type: 'rate_limit_error' } });
  expect(tries).toBeGreaterThan(10);
});

test('an error that says when to try again makes 429 with Retry-After, in whole seconds', async () => {
  const error = new ServingError('quota_exceeded', 'too much', { retryAfterSeconds: 2.2 });
  const { complete } = await fakeGateway({ token, failAt: { stage: 'before accepted', error } });
  const answer = await complete({ prompt: 'x' });
  expect(answer).toMatchObject({ status: 429, error: { code: 'quota_exceeded', type: 'rate_limit_error' } });
  expect(answer.headers['retry-after']).toBe('3');
});
