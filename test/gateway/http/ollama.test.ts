import { expect, test } from 'vitest';
import { ZED_OLLAMA } from '../../support/editor-requests.ts';
import { fakeGateway, idOf, spelling, tokenizer } from '../../support/fake-gateway.ts';

const TEXT = 'item.price for item in cart)\n';

async function gateway() {
  const made = await fakeGateway({ token: spelling(TEXT), capacity: 4_096 });
  const generate = (payload: object) => made.app.inject({ method: 'POST', url: '/api/generate', payload });
  return { ...made, generate };
}

test('a request of Zed by Ollama is answered, and its frame is read as tokens', async () => {
  const { generate, workers } = await gateway();
  const answer = await generate(ZED_OLLAMA);
  expect(answer.json()).toMatchObject({ model: 'tiny', response: TEXT, done: true, done_reason: 'stop' });
  const ids = workers.prefills[0]!.tokenIds!;
  expect([ids[0], ids.at(-1)]).toEqual([idOf('<|fim_prefix|>'), idOf('<|fim_middle|>')]);
  expect(workers.prefills[0]!.choices![0]).toMatchObject({ temperature: 0.2, topK: 40, topP: 0.9 });
  await workers.idle();
});

test('durations of Ollama are in ns, and counts are those of the usage', async () => {
  const { generate, workers } = await gateway();
  const body = (await generate({ model: 'tiny:latest', prompt: 'def f(', suffix: ')', stream: false })).json();
  expect(body).toMatchObject({
    model: 'tiny',
    load_duration: 0,
    prompt_eval_count: workers.prefills[0]!.tokenIds!.length,
    prompt_eval_duration: 1_000_000,
    eval_count: tokenizer.encode(TEXT).length + 1,
  });
  expect(Number.isSafeInteger(body.total_duration) && body.total_duration >= body.eval_duration).toBe(true);
  expect(workers.prefills[0]!.tokenIds).toContain(idOf('<|fim_middle|>'));
});

test('a stream of Ollama, which is the default, has a value per line and says at its end that it is done', async () => {
  const { generate } = await gateway();
  const { payload, headers } = await generate({ model: 'tiny', prompt: 'x' });
  expect(headers['content-type']).toBe('application/x-ndjson');
  const lines = payload
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line));
  expect(lines.map(({ response }) => response).join('')).toBe(TEXT);
  expect(lines.map(({ done }) => done)).toEqual([...Array(lines.length - 1).fill(false), true]);
  expect(lines.at(-1)).toMatchObject({ response: '', done_reason: 'stop', eval_count: expect.any(Number) });
});

test('errors of Ollama are texts, before a stream and within one', async () => {
  const { generate } = await gateway();
  for (const [body, status, words] of [
    [{ model: 'llama3', prompt: 'x' }, 404, /llama3.* is not served here/],
    [{ model: 'llama3' }, 404, /llama3.* is not served here/],
    [{ prompt: 'x' }, 400, /model/],
    [{ model: 'tiny', prompt: 'x', format: 'json' }, 400, /format: is not supported/],
    [{ model: 'tiny', prompt: 'x', options: { num_predict: 'all' } }, 400, /options.num_predict/],
  ] as const) {
    const answer = await generate(body);
    expect([answer.statusCode, answer.json()]).toEqual([status, { error: expect.stringMatching(words) }]);
  }
  const error = new Error('lost');
  const failing = await fakeGateway({ token: spelling(TEXT), failAt: { stage: 'in decode', error } });
  const body = { model: 'tiny', prompt: 'x' };
  const { payload } = await failing.app.inject({ method: 'POST', url: '/api/generate', payload: body });
  expect(JSON.parse(payload.trimEnd().split('\n').at(-1)!)).toEqual({ error: expect.stringContaining('unexpected') });
});

test('a request without a prompt makes the model ready, which it is', async () => {
  const { generate, workers } = await gateway();
  const answer = await generate({ model: 'tiny', keep_alive: '5m' });
  expect(answer.json()).toMatchObject({ response: '', done: true, done_reason: 'load' });
  expect(workers.prefills).toEqual([]);
});

test('null and unknown options mean nothing, and unknown ones are named', async () => {
  const { generate } = await gateway();
  const options = { num_predict: null, stop: null, num_ctx: 4096, mirostat: 1 };
  const answer = await generate({ model: 'tiny', prompt: 'x', suffix: null, template: 'y', stream: false, options });
  expect([answer.statusCode, answer.json().response]).toEqual([200, TEXT]);
  expect(answer.headers['x-llavacode-ignored']).toBe('template,options.num_ctx,options.mirostat');
});

test('the model is described as Ollama does, with the capability to insert where it has a frame for that', async () => {
  const { app } = await gateway();
  expect((await app.inject('/api/version')).json()).toEqual({ version: expect.stringMatching(/^\d+\.\d+\.\d+$/) });
  const { models } = (await app.inject('/api/tags')).json();
  expect(models).toMatchObject([{ name: 'tiny:latest', model: 'tiny:latest', digest: 'f'.repeat(64) }]);
  const show = async (made: typeof app, payload: object) =>
    (await made.inject({ method: 'POST', url: '/api/show', payload })).json();
  for (const body of [
    { model: 'tiny:latest' },
    { name: 'tiny' },
    { model: 'tiny@shop' },
    { model: 'tiny:latest@shop' },
  ]) {
    expect(await show(app, body)).toMatchObject({
      capabilities: ['completion', 'insert'],
      model_info: { 'llavacode.context_length': 4_096 },
    });
  }
  const plain = await fakeGateway({ token: () => 70 }, { promptFormat: 'prefix-only' });
  expect(await show(plain.app, { model: 'tiny' })).toMatchObject({ capabilities: ['completion'] });
  expect(await show(app, { model: 'other' })).toEqual({ error: expect.stringContaining('other') });
  expect(await show(app, {})).toEqual({ error: expect.stringContaining('model: is required') });
});
