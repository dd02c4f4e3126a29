import { expect, test } from 'vitest';
import { bearer, keyEntry, keysOf } from '../../support/api-keys.ts';
import { LLAMA_VIM, LLAMA_VIM_WARM_UP, LLAMA_VSCODE, LLAMA_VSCODE_TOKENIZE } from '../../support/editor-requests.ts';
import { type FakeGatewayOptions, fakeGateway, idOf, spelling, tokenizer } from '../../support/fake-gateway.ts';
import type { FakeModel } from '../../support/fake-workers.ts';

const TEXT = 'item.price for item in cart)\n';
const count = tokenizer.encode(TEXT).length + 1;

async function gateway(model: Partial<FakeModel> = {}, options: FakeGatewayOptions = {}) {
  const made = await fakeGateway({ token: spelling(TEXT), capacity: 4_096, ...model }, options);
  const post = (url: string, payload: object) => made.app.inject({ method: 'POST', url, payload });
  return { ...made, post };
}

test('a request of llama.vim is answered with the fields that it asks for, under their paths', async () => {
  const { post, workers } = await gateway();
  const answer = await post('/infill', LLAMA_VIM);
  expect(answer.statusCode).toBe(200);
  const { promptTokens, body } = { promptTokens: workers.prefills[0]!.tokenIds!.length, body: answer.json() };
  expect(Object.keys(body)).toEqual(LLAMA_VIM.response_fields);
  expect(body).toMatchObject({
    content: TEXT,
    'timings/prompt_n': promptTokens - 2,
    'timings/prompt_ms': 1,
    'timings/prompt_per_second': (promptTokens - 2) * 1000,
    'timings/predicted_n': count,
    truncated: false,
    tokens_cached: 2,
  });
  expect(answer.headers).not.toHaveProperty('x-llavacode-ignored');
  await workers.idle();
});

test('the line up to the cursor stands at the end of the text before it', async () => {
  const { post, workers } = await gateway();
  await post('/infill', LLAMA_VIM);
  const { input_prefix, input_suffix, prompt } = LLAMA_VIM;
  const ids = [...workers.prefills[0]!.tokenIds!];
  const context = tokenizer.decode(ids.splice(0, ids.indexOf(idOf('<|fim_prefix|>'))));
  for (const { text } of LLAMA_VIM.input_extra) expect(context).toContain(text.trim());
  expect(ids).toEqual([
    idOf('<|fim_prefix|>'),
    ...tokenizer.encode(input_prefix + prompt),
    idOf('<|fim_suffix|>'),
    ...tokenizer.encode(input_suffix),
    idOf('<|fim_middle|>'),
  ]);
  expect(workers.prefills[0]!.choices![0]).toMatchObject({ topK: 40, topP: 0.9, minP: 0.05, temperature: 0.8 });
});

test('the warm-up of llama.vim computes the prompt, decodes nothing and answers at once', async () => {
  const { post, workers } = await gateway();
  const answer = await post('/infill', LLAMA_VIM_WARM_UP);
  expect([answer.statusCode, answer.json()]).toEqual([200, {}]);
  expect([workers.prefills.length, workers.decodes.length]).toEqual([1, 0]);
  expect(workers.prefills[0]).toMatchObject({ readers: 0 });
  const whole = await post('/infill', { ...LLAMA_VIM_WARM_UP, input_prefix: 'x = ', response_fields: undefined });
  expect(whole.json()).toMatchObject({ content: '', stop: true, stop_type: 'limit', tokens_predicted: 0 });
  await workers.idle();
});

test('several completions of llama.vscode come as a list, and what it sends besides is named', async () => {
  const { post, workers } = await gateway({ token: (position, choice) => (position < 3 ? 70 + choice : 0) });
  const answer = await post('/infill', LLAMA_VSCODE);
  expect(answer.json()).toHaveLength(3);
  expect(answer.json().map(({ index, stop }: { index: number; stop: boolean }) => [index, stop])).toEqual([
    [0, true],
    [1, true],
    [2, true],
  ]);
  expect(answer.json()[1].content).toContain(tokenizer.decode([71, 71, 71]));
  expect(answer.headers['x-llavacode-ignored']).toBe('lora');
  await workers.idle();
});

test.each([
  [{}, { stop_type: 'eos', stopping_word: '', content: TEXT }],
  [{ n_predict: 2 }, { stop_type: 'limit', stopping_word: '', tokens_predicted: 2 }],
  [{ stop: ['in cart', '\n'] }, { stop_type: 'word', stopping_word: 'in cart', content: 'item.price for item ' }],
])('an answer to %j says what ended it', async (fields, expected) => {
  const { post } = await gateway();
  const body = { prompt: 'total = sum(', seed: -1, ...fields };
  expect((await post('/completion', body)).json()).toMatchObject({ model: 'tiny', stop: true, ...expected });
});

test('a stream of llama.cpp tells its progress first, then text, and last what a whole answer says', async () => {
  const { post, workers } = await gateway();
  const body = { prompt: 'total = sum(', temperature: 0, return_progress: true, stream: true };
  const { payload, headers } = await post('/completion', body);
  expect(headers['content-type']).toMatch(/^text\/event-stream/);
  const events = payload
    .split('\n\n')
    .slice(0, -1)
    .map((event) => JSON.parse(event.slice('data: '.length)));
  const total = workers.prefills[0]!.tokenIds!.length;
  expect(events[0]).toMatchObject({ stop: false, prompt_progress: { total, cache: 2, processed: total, time_ms: 1 } });
  expect(events.map(({ content }) => content).join('')).toBe(TEXT);
  const whole = (await post('/completion', { ...body, stream: false })).json();
  const untimed = ({ timings: _, content: __, ...rest }: Record<string, unknown>) => rest;
  expect(untimed(events.at(-1))).toEqual(untimed(whole));
  expect(events.slice(0, -1).every(({ stop }) => stop === false)).toBe(true);
});

test('prompts of llama.cpp may be several, of text or of ids', async () => {
  const { post, workers } = await gateway();
  const answer = await post('/completion', { prompt: [[5, 6], [7]], n_predict: 1 });
  expect(answer.json()).toHaveLength(2);
  expect(workers.prefills.map(({ tokenIds }) => tokenIds)).toEqual([[5, 6], [7]]);
  const mixed = await post('/completion', { prompt: [5, 'x'] });
  expect([mixed.statusCode, mixed.json().error.param]).toEqual([400, 'prompt']);
});

test('a limit of more tokens than there is room for, or of none, leaves half of the room for the prompt', async () => {
  for (const n_predict of [-1, -2, 100_000, undefined, null]) {
    const { post, workers } = await gateway({ token: () => 70, capacity: 32 });
    const answer = await post('/completion', { prompt: 'x', n_predict });
    expect(answer.json()).toMatchObject({ tokens_predicted: 16, stop_type: 'limit' });
    await workers.idle();
  }
});

test('an infill that the model does not hold is cut, and says so', async () => {
  const { post } = await gateway({ capacity: 64 });
  const long = 'x = 1\n'.repeat(200);
  expect((await post('/infill', { input_prefix: long, n_predict: 4 })).json()).toMatchObject({ truncated: true });
  expect((await post('/infill', { input_suffix: long, n_predict: 4 })).json()).toMatchObject({ truncated: true });
  expect((await post('/infill', { input_prefix: 'x', n_predict: 4 })).json()).toMatchObject({ truncated: false });
});

test('the model may have any name, and null means that a field is not given', async () => {
  const { post } = await gateway();
  const answer = await post('/infill', { input_prefix: 'x', model: 'qwen', stop: null, input_extra: null, seed: null });
  expect([answer.statusCode, answer.json().model]).toEqual([200, 'tiny']);
  const refused = await post('/infill', { input_prefix: 5 });
  expect([refused.statusCode, refused.json().error.param]).toEqual([400, 'input_prefix']);
  const many = await post('/completion', { prompt: ['a', 'b'], n_cmpl: 100 });
  expect([many.statusCode, many.json().error.message]).toEqual([400, expect.stringContaining('at most 128')]);
});

test('names of ignored fields cannot break the header, and are few and short', async () => {
  const { post } = await gateway();
  const odd = Object.fromEntries(Array.from({ length: 50 }, (_, i) => [`\r\n, é\ud800${'x'.repeat(200)}${i}`, 1]));
  const { statusCode, headers } = await post('/infill', { ...odd, n_predict: 1 });
  expect(statusCode).toBe(200);
  expect(headers['x-llavacode-ignored']).toMatch(/^[\w%,-]{1,3000}$/);
  expect(String(headers['x-llavacode-ignored']).split(',')).toHaveLength(20);
});

test('text becomes tokens and text again, with names of special tokens as the client wants them', async () => {
  const { post } = await gateway();
  const ids = tokenizer.encode(LLAMA_VSCODE_TOKENIZE.content);
  expect((await post('/tokenize', LLAMA_VSCODE_TOKENIZE)).json()).toEqual({ tokens: ids });
  expect((await post('/detokenize', { tokens: ids })).json()).toEqual({ content: LLAMA_VSCODE_TOKENIZE.content });
  const special = '<|fim_middle|>';
  expect((await post('/tokenize', { content: special })).json()).toEqual({ tokens: [idOf(special)] });
  const plain = (await post('/tokenize', { content: special, parse_special: false })).json();
  expect(plain).toEqual({ tokens: tokenizer.encode(special) });
  const { tokens } = (await post('/tokenize', { content: 'a😀', with_pieces: true })).json();
  const bytes = tokens.flatMap(({ piece }: { piece: string | number[] }) => [...Buffer.from(piece as string)]);
  expect(Buffer.from(bytes).toString()).toBe('a😀');
  expect((await post('/detokenize', { tokens: [4096] })).json().error.message).toContain('4096 is not in');
  expect((await post('/detokenize', { tokens: ['x'] })).statusCode).toBe(400);
});

test('a text to be tokenized takes a place in flight, and a hundredth of its tokens', async () => {
  const keys = await keysOf([keyEntry('k', 'a', { tokens_per_minute: 100 }), keyEntry('l', 'b', { max_inflight: 1 })]);
  const { app } = await gateway({}, { keys });
  const post = (url: string, payload: object, key = 'k') =>
    app.inject({ method: 'POST', url, payload, headers: bearer(key) });
  const content = 'x = 1\n'.repeat(1_000); // 4,000 tokens
  expect((await post('/tokenize', { content: 'x' })).statusCode).toBe(200);
  const answers = [await post('/tokenize', { content }), await post('/tokenize', { content })];
  expect(answers.map(({ statusCode }) => statusCode)).toEqual([200, 200]);
  const tokens = answers[0]!.json().tokens.length;
  expect(tokens).toBeGreaterThan(3_000);
  const refused = await post('/detokenize', { tokens: Array.from({ length: 9_000 }, () => 70) });
  expect([refused.statusCode, refused.json().error.code]).toEqual([429, 'quota_exceeded']);
  expect(refused.headers['x-llavacode-limit']).toBe('tokens-per-minute');
  expect((await post('/tokenize', { content }, 'l')).statusCode).toBe(200);
  expect((await post('/tokenize', { content }, 'l')).statusCode).toBe(200); // the place is free again
});

test('a line may be indented by as many characters on all routes', async () => {
  const { post } = await gateway();
  for (const [n_indent, status] of [
    [1_024, 200],
    [1_025, 400],
  ]) {
    expect((await post('/infill', { input_prefix: 'x', n_predict: 1, n_indent })).statusCode).toBe(status);
    expect((await post('/completion', { prompt: 'x', n_predict: 1, n_indent })).statusCode).toBe(status);
    expect((await post('/v1/completions', { prompt: 'x', max_tokens: 1, n_indent })).statusCode).toBe(status);
  }
});

test('a server says of itself what clients of llama.cpp ask, and of its slots only if it is told to', async () => {
  const { app } = await gateway();
  const props = (await app.inject('/props')).json();
  expect(props).toMatchObject({ total_slots: 4, model_alias: 'tiny', default_generation_settings: { n_ctx: 4_096 } });
  const closed = await app.inject('/slots');
  expect([closed.statusCode, closed.json().error.message]).toEqual([404, expect.stringContaining('--slots-route')]);
  const open = await gateway({}, { slotsRoute: true });
  const slots = (await open.app.inject('/slots')).json();
  expect(slots.map(({ id, is_processing }: Record<string, unknown>) => [id, is_processing])).toEqual(
    [0, 1, 2, 3].map((id) => [id, false]),
  );
});

test('a gateway that is not ready says so in the words of llama.cpp', async () => {
  const { app } = await gateway();
  const answer = await app.inject('/health');
  expect(answer.statusCode).toBe(503);
  expect(answer.json()).toMatchObject({ error: { code: 503, message: 'Loading model', type: 'unavailable_error' } });
});
