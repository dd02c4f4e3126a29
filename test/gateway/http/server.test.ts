import { describe, expect, test } from 'vitest';
import { fakeGateway, spelling } from '../../support/fake-gateway.ts';

const token = spelling('ab');

describe('routes', () => {
  test('tell the model', async () => {
    const { app } = await fakeGateway({ token, capacity: 100 });
    const model = {
      id: 'tiny',
      object: 'model',
      created: expect.any(Number),
      owned_by: 'llavacode',
      max_model_len: 100,
    };
    expect((await app.inject('/v1/models')).json()).toEqual({ object: 'list', data: [model] });
    expect((await app.inject('/v1/models/tiny')).json()).toEqual(model);
    const missing = await app.inject('/v1/models/gpt');
    expect([missing.statusCode, missing.json().error]).toMatchObject([
      404,
      { code: 'model_not_found', param: 'model' },
    ]);
  });

  test('check the model of a completion', async () => {
    const { complete } = await fakeGateway({ token });
    expect(await complete({ model: 'gpt', prompt: 'x' })).toMatchObject({ status: 404, error: { param: 'model' } });
    expect(await complete({ model: 'tiny', prompt: 'x' })).toMatchObject({ status: 200 });
  });

  test('are alive, ready and measured', async () => {
    const { app, complete, readiness } = await fakeGateway({ token });
    await complete({ prompt: 'x' });
    await readiness.check();
    expect((await app.inject('/livez')).json()).toEqual({ status: 'live' });
    expect((await app.inject('/readyz')).json()).toEqual({ status: 'ready' });
    const { payload, headers } = await app.inject('/metrics');
    expect(headers['content-type']).toContain('text/plain');
    expect(payload).toMatch(/vllm:time_to_first_token_seconds_count [1-9]/);
    expect(payload).toMatch(/vllm:inter_token_latency_seconds_count [1-9]/);
    expect(payload).toMatch(/vllm:request_success_total\{finished_reason="stop"\} [1-9]/);
    expect(payload).toMatch(/llavacode:stage_seconds_count\{stage="handoff"\} [1-9]/);
    expect(payload).toMatch(/vllm:num_requests_running 0/);
  });

  test('are for this machine alone where nobody needs a key: no web page gets in by a name of its own', async () => {
    const { app } = await fakeGateway({ token }, { host: '127.0.0.1' });
    const ask = async (host: string, url = '/v1/models') => (await app.inject({ url, headers: { host } })).statusCode;
    for (const host of ['localhost', '127.0.0.1:8000', '[::1]:8000', 'LOCALHOST:1']) expect(await ask(host)).toBe(200);
    for (const host of ['evil.example', 'localhost.evil.example:8000', '10.0.0.1', '[fd00::1]:8000']) {
      for (const url of ['/v1/models', '/v1/repos', '/metrics', '/nothing']) expect(await ask(host, url)).toBe(403);
    }
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
  test.each(refusals)('refuse %s in OpenAI’s shape', async (_, request, status, code, field) => {
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
  ])('%s is taken if it is harmless, and given back', async (given, expected) => {
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
  test('has one line per completion: the timeline, and nothing of the prompt', async () => {
    const gateway = await fakeGateway({ token });
    const secret = 'password = hunter2';
    await gateway.complete({ prompt: secret, suffix: secret, max_tokens: 5 });
    await gateway.complete({ prompt: secret, nonsense: secret });
    const line = () => gateway.lines.filter(({ message }) => message === 'completion');
    await expect.poll(() => line().length).toBe(2);
    const [done, refused] = JSON.parse(JSON.stringify(line()));
    expect(done).toMatchObject({
      request_id: expect.any(String),
      status: 200,
      usage: { completion_tokens: 2 },
      finish: ['stop'],
    });
    expect(Object.keys(done.timeline)).toEqual(
      expect.arrayContaining([
        'received',
        'admitted',
        'tokenized',
        'dispatched',
        'first_token',
        'joined',
        'last_token',
        'finished',
        'handoff_ms',
        'detokenize_ms',
      ]),
    );
    expect(refused).toMatchObject({ status: 400, code: 'invalid_request' });
    expect(JSON.stringify(gateway.lines)).not.toContain('hunter2');
  });

  test('tells the cause of an unexpected failure, the answer does not', async () => {
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
