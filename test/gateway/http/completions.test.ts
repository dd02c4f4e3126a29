import { expect, test } from 'vitest';
import { MINUET, MINUET_TEMPLATE, ZED_OPENAI } from '../../support/editor-requests.ts';
import { fakeGateway, idOf, spelling, tokenizer } from '../../support/fake-gateway.ts';

const TEXT = 'return self.items.pop()  # 😀 done\n\n\ndef next():';
const tokens = tokenizer.encode(TEXT).length;

/** The sums of a stream's chunks, choice by choice. */
function gathered(chunks: Awaited<ReturnType<Awaited<ReturnType<typeof fakeGateway>>['stream']>>) {
  const whole = new Map<number, { text: string; finish: string | null; ids: number[]; logprobs: unknown[][] }>();
  for (const choice of chunks.flatMap((chunk) => chunk.choices)) {
    const sum = whole.get(choice.index) ?? { text: '', finish: null, ids: [], logprobs: [[], [], [], []] };
    whole.set(choice.index, sum);
    sum.text += choice.text;
    sum.finish = choice.finish_reason;
    sum.ids.push(...(choice.token_ids ?? []));
    if (choice.logprobs === null) continue;
    for (const [i, list] of Object.values(choice.logprobs).entries()) sum.logprobs[i]!.push(...list);
  }
  return whole;
}

test('a completion has OpenAI’s shape and ends at the end of text', async () => {
  const gateway = await fakeGateway({ token: spelling(TEXT) });
  const answer = await gateway.complete({ model: 'tiny', prompt: 'def pop(self):\n', suffix: '', max_tokens: 100 });
  expect(answer).toMatchObject({
    status: 200,
    id: expect.stringMatching(/^cmpl-/),
    object: 'text_completion',
    created: expect.any(Number),
    model: 'tiny',
    choices: [{ index: 0, text: TEXT, logprobs: null, finish_reason: 'stop' }],
    usage: { completion_tokens: tokens + 1, prompt_tokens_details: { cached_tokens: 2, soft_tokens: 0 } },
  });
  expect(answer.usage!.prompt_tokens).toBe(gateway.workers.prefills[0]!.tokenIds!.length);
  expect(answer.usage!.total_tokens).toBe(answer.usage!.prompt_tokens + tokens + 1);
  expect(answer).not.toHaveProperty('rag');
  expect(answer.headers['x-request-id']).toBe(answer.id.slice('cmpl-'.length));
  await gateway.workers.idle();
});

test.each([
  ['alone', {}],
  ['of several choices and prompts', { n: 3, prompt: ['a', 'b'] }],
  ['with logprobs and ids', { logprobs: 2, return_token_ids: true }],
  ['with stop strings', { stop: ['\n\n', 'never'] }],
  ['with the prompt in front', { echo: true, logprobs: 0, prompt: 'é <|fim_pad|>' }],
  ['within a character', { max_tokens: tokenizer.encode('return self.items.pop()  # 😀').length - 1 }],
])('a stream %s adds up to the whole answer', async (_, more) => {
  for (const stepSize of [1, 3]) {
    const gateway = await fakeGateway({ token: spelling(TEXT), stepSize });
    const body = { prompt: 'def', max_tokens: 60, seed: 1, ...more };
    const whole = await gateway.complete(body);
    const chunks = await gateway.stream({ ...body, stream_options: { include_usage: true } });
    const sums = gathered(chunks);
    expect(sums.size).toBe(whole.choices.length);
    for (const choice of whole.choices) {
      expect(sums.get(choice.index)).toEqual({
        text: choice.text,
        finish: choice.finish_reason,
        ids: choice.token_ids ?? [],
        logprobs: choice.logprobs === null ? [[], [], [], []] : Object.values(choice.logprobs),
      });
    }
    expect(chunks.at(-1)).toMatchObject({ choices: [], usage: whole.usage });
    expect(chunks.slice(0, -1).every((chunk) => chunk.usage === null)).toBe(true);
    await gateway.workers.idle();
  }
});

test('a stream shows the first token before anything is decoded', async () => {
  const { app, workers } = await fakeGateway({ token: spelling(TEXT), holdAt: 'before joined' });
  const address = await app.listen({ port: 0 });
  const answer = await fetch(`${address}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ prompt: 'x', stream: true }),
  });
  const { value } = await answer.body!.getReader().read();
  const event = JSON.parse(Buffer.from(value!).toString().slice('data: '.length));
  expect(event.choices[0].text).toBe(tokenizer.decode(tokenizer.encode(TEXT).slice(0, 1)));
  await workers.held();
  app.server.closeAllConnections();
  await workers.idle();
  await app.close();
});

test('a stream may carry usage in every chunk', async () => {
  const { stream } = await fakeGateway({ token: spelling('ab cd') });
  const stream_options = { include_usage: true, continuous_usage_stats: true };
  const chunks = await stream({ prompt: 'x', stream_options });
  expect(chunks.slice(0, -1).map((chunk) => chunk.usage!.completion_tokens)).toEqual(
    chunks.slice(0, -1).map((_, i) => i + 1),
  );
});

test('a stream that fails on its way ends with an error event', async () => {
  const error = new Error('lost');
  const { stream, workers } = await fakeGateway({ token: spelling(TEXT), failAt: { stage: 'in decode', error } });
  const chunks = await stream({ prompt: 'x' });
  expect(chunks).toHaveLength(2);
  expect(chunks[1]!.error).toMatchObject({ type: 'server_error', code: 'internal' });
  expect(chunks[1]!.error!.message).not.toContain('lost');
  await workers.idle();
});

test.each([
  ['minuet with a suffix', MINUET],
  ['minuet with a frame of its own', MINUET_TEMPLATE],
  ['Zed', ZED_OPENAI],
])('a request of %s is answered by /v1/completions, as strict as it is', async (_, body) => {
  const { app, workers } = await fakeGateway({ token: spelling(TEXT), capacity: 1_024 });
  const answer = await app.inject({ method: 'POST', url: '/v1/completions', payload: body });
  expect([answer.statusCode, answer.headers['x-llavacode-ignored']]).toEqual([200, undefined]);
  const ids = workers.prefills[0]!.tokenIds!;
  expect([ids[0], ids.at(-1)]).toEqual([idOf('<|fim_prefix|>'), idOf('<|fim_middle|>')]);
  await workers.idle();
});

test('other names of the route ignore what they do not know, and the engine may have any name', async () => {
  const { app } = await fakeGateway({ token: spelling(TEXT) });
  const body = { prompt: 'x', suffix: null, max_tokens: 3, extra: { language: 'python' }, nwo: 'acme/shop' };
  for (const url of ['/beta/completions', '/v1/engines/copilot-codex/completions', '/v1/engines/tiny/completions']) {
    const answer = await app.inject({ method: 'POST', url, payload: body });
    expect([answer.statusCode, answer.headers['x-llavacode-ignored']]).toEqual([200, 'extra,nwo']);
    expect(answer.json()).toMatchObject({ object: 'text_completion', model: 'tiny' });
  }
});

test('DeepSeek’s clients may ask for its models by name, and name a repository behind it', async () => {
  const { app } = await fakeGateway({ token: spelling(TEXT) });
  const post = (model: string) =>
    app.inject({ method: 'POST', url: '/beta/completions', payload: { model, prompt: 'x', max_tokens: 3 } });
  expect((await post('deepseek-chat')).json()).toMatchObject({ model: 'tiny', object: 'text_completion' });
  const named = await post('deepseek-coder@gone');
  expect([named.statusCode, named.headers['x-llavacode-rag']]).toEqual([
    200,
    'compressed; chunks=0; degraded=no_store',
  ]);
  expect((await post('gpt-5')).json()).toMatchObject({ error: { code: 'model_not_found' } });
});

test('fields of other servers that do not change the answer are taken also where unknown ones are refused', async () => {
  const { complete, stream } = await fakeGateway({ token: spelling(TEXT) });
  const body = { prompt: 'x', max_tokens: 3, temperature: 0 };
  const { choices } = await complete(body);
  const harmless = {
    ...{ user: 'me', metadata: { a: 1 }, store: true, service_tier: 'auto', prompt_cache_retention: '24h' },
    ...{ cache_prompt: true, keep_alive: '5m', return_progress: false, timings_per_token: true },
    ...{ tags: ['a'], trace: { id: 'x' }, trace_id: 'x', detokenize: true, num_beams: 1, tools: [] },
    ...{ response_format: { type: 'text' }, best_of: null, repetition_penalty: 1 },
  };
  for (const [name, value] of Object.entries(harmless)) {
    const answer = await complete({ ...body, [name]: value });
    expect([name, answer.status, answer.choices]).toEqual([name, 200, choices]);
  }
  const stream_options = { include_usage: true, include_obfuscation: false };
  expect((await stream({ ...body, stream_options })).at(-1)!.usage).toMatchObject({ completion_tokens: 3 });
  const changing = {
    tools: [{}],
    num_beams: 4,
    detokenize: false,
    response_format: { type: 'json_object' },
    samplers: [],
  };
  for (const [name, value] of Object.entries(changing)) {
    const { status, error } = await complete({ ...body, [name]: value });
    expect([name, status, error?.param]).toEqual([name, 400, expect.stringMatching(new RegExp(`^${name}`))]);
  }
});

test('--unknown-fields ignore names unknown fields, and refuses only what would change the answer', async () => {
  const strict = await fakeGateway({ token: spelling(TEXT) });
  const lenient = await fakeGateway({ token: spelling(TEXT) }, { unknownFields: 'ignore' });
  const body = { prompt: 'x', max_tokens: 3, samplers: ['top_k'], rag: { mode: 'off', k: 1 } };
  expect(await strict.complete(body)).toMatchObject({
    status: 400,
    error: { message: expect.stringContaining('samplers: is not a field') },
  });
  const taken = await lenient.complete(body);
  expect([taken.status, taken.headers['x-llavacode-ignored']]).toEqual([200, 'samplers,rag.k']);
  for (const { complete } of [strict, lenient]) {
    const changed = await complete({ prompt: 'x', repetition_penalty: 1.3 });
    expect(changed).toMatchObject({ status: 400, error: { param: 'repetition_penalty' } });
    const harmless = { metadata: { a: 'b' }, store: false, service_tier: 'auto', prompt_cache_key: 'k' };
    expect((await complete({ prompt: 'x', max_tokens: 3, ...harmless })).status).toBe(200);
    expect((await complete({ prompt: 'x', max_tokens: 3, rag: { mode: 'off', path: null } })).status).toBe(200);
  }
});
