/**
 * Clients as they come from npm, unmodified: each gets its text whole and as a stream, and one that hangs up frees the
 * workers.
 */
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { constructLlmApi } from '@continuedev/openai-adapters';
import { Mistral } from '@mistralai/mistralai';
import { Ollama } from 'ollama';
import OpenAI from 'openai';
import { describe, expect, test } from 'vitest';
import { tokenizerWithChat } from '../../support/chat-tokenizer.ts';
import { listeningGateway, spelling } from '../../support/fake-gateway.ts';
import type { FakeModel } from '../../support/fake-workers.ts';

const TEXT = 'item.price for item in cart)\n    return net';
const PROMPT = 'def total(cart):\n    net = sum(';
const SUFFIX = '\n';
const MESSAGES = [{ role: 'user' as const, content: 'Add the prices.' }];
const model = 'tiny';

interface Client {
  whole?(url: string): Promise<string | null | undefined>;
  /** The texts of a stream. @param signal hangs up. */
  stream(url: string, signal: AbortSignal): AsyncIterable<string | null | undefined>;
}

/** What a client yields, as texts. */
async function* texts<T>(items: AsyncIterable<T>, textOf: (item: T) => string | null | undefined) {
  for await (const item of items) yield textOf(item);
}

const openai = (url: string) => new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 });
const mistral = (url: string) => new Mistral({ serverURL: url, apiKey: 'none' });
const sdk = (url: string) => createOpenAICompatible({ name: 'llavacode', baseURL: `${url}/v1` });
const continues = (url: string, provider: 'vllm' | 'deepseek' | 'mistral') =>
  constructLlmApi({ provider, apiKey: 'none', apiBase: `${url}/${provider === 'deepseek' ? '' : 'v1/'}` })!;

const body = { model, prompt: PROMPT, suffix: SUFFIX, max_tokens: 64, temperature: 0 };
const chat = { model, messages: MESSAGES, max_tokens: 64, temperature: 0 };
const sdkCall = (prompt: string) => ({
  prompt: [{ role: 'user' as const, content: [{ type: 'text' as const, text: prompt }] }],
  maxOutputTokens: 64,
  temperature: 0,
});

/** Ollama's streams are ended by themselves. */
async function* ollamaStream(url: string, signal: AbortSignal) {
  const request = { model, prompt: PROMPT, suffix: SUFFIX, stream: true as const };
  const stream = await new Ollama({ host: url }).generate(request);
  if (signal.aborted) stream.abort();
  else signal.addEventListener('abort', () => stream.abort(), { once: true });
  yield* texts(stream, ({ response }) => response);
}

async function* sdkStream(call: PromiseLike<{ stream: ReadableStream<{ type: string }> }>) {
  for await (const part of (await call).stream as unknown as AsyncIterable<{ type: string; delta?: string }>) {
    if (part.type === 'text-delta') yield part.delta;
  }
}

const CLIENTS: Record<string, Client> = {
  'openai, completions': {
    whole: async (url) => (await openai(url).completions.create(body)).choices[0]!.text,
    async *stream(url, signal) {
      const stream = await openai(url).completions.create({ ...body, stream: true }, { signal });
      yield* texts(stream, ({ choices }) => choices[0]?.text);
    },
  },
  'openai, chats': {
    whole: async (url) => (await openai(url).chat.completions.create(chat)).choices[0]!.message.content,
    async *stream(url, signal) {
      const options = { ...chat, stream: true as const, stream_options: { include_usage: true } };
      const stream = await openai(url).chat.completions.create(options, { signal });
      yield* texts(stream, ({ choices }) => choices[0]?.delta.content);
    },
  },
  ollama: {
    whole: async (url) =>
      (await new Ollama({ host: url }).generate({ model, prompt: PROMPT, suffix: SUFFIX, stream: false })).response,
    stream: ollamaStream,
  },
  '@mistralai/mistralai': {
    whole: async (url) => {
      const { choices } = await mistral(url).fim.complete({ model, prompt: PROMPT, suffix: SUFFIX, maxTokens: 64 });
      return choices![0]!.message!.content as string;
    },
    async *stream(url, signal) {
      const request = { model, prompt: PROMPT, suffix: SUFFIX, maxTokens: 64 };
      const stream = await mistral(url).fim.stream(request, { fetchOptions: { signal } });
      yield* texts(stream, ({ data }) => data.choices[0]?.delta.content as string);
    },
  },
  '@continuedev/openai-adapters, completions': {
    whole: async (url) => {
      const { signal } = new AbortController();
      return (await continues(url, 'vllm').completionNonStream({ ...body, stream: false }, signal)).choices[0]!.text;
    },
    async *stream(url, signal) {
      const stream = continues(url, 'vllm').completionStream({ ...body, stream: true }, signal);
      yield* texts(stream, ({ choices }) => choices[0]?.text);
    },
  },
  '@continuedev/openai-adapters, fill-in-the-middle of Mistral': {
    async *stream(url, signal) {
      const stream = continues(url, 'mistral').fimStream({ ...body, stream: true }, signal);
      yield* texts(stream, ({ choices }) => choices[0]?.delta.content);
    },
  },
  '@continuedev/openai-adapters, fill-in-the-middle of DeepSeek': {
    async *stream(url, signal) {
      const stream = continues(url, 'deepseek').fimStream({ ...body, stream: true }, signal);
      yield* texts(stream, ({ choices }) => choices[0]?.delta.content);
    },
  },
  '@ai-sdk/openai-compatible, completions': {
    whole: async (url) => {
      const { content } = await sdk(url).completionModel(model).doGenerate(sdkCall(PROMPT));
      return content.map((part) => (part.type === 'text' ? part.text : '')).join('');
    },
    stream: (url, abortSignal) =>
      sdkStream(
        sdk(url)
          .completionModel(model)
          .doStream({ ...sdkCall(PROMPT), abortSignal }),
      ),
  },
  '@ai-sdk/openai-compatible, chats': {
    whole: async (url) => {
      const { content } = await sdk(url).chatModel(model).doGenerate(sdkCall('Add.'));
      return content.map((part) => (part.type === 'text' ? part.text : '')).join('');
    },
    stream: (url, abortSignal) =>
      sdkStream(
        sdk(url)
          .chatModel(model)
          .doStream({ ...sdkCall('Add.'), abortSignal }),
      ),
  },
};

const withChat = await tokenizerWithChat();

async function gateway(fake: Partial<FakeModel> = {}) {
  const made = await listeningGateway({ token: spelling(TEXT), capacity: 1_024, ...fake }, { tokenizer: withChat });
  return { ...made, url: `http://127.0.0.1:${made.port}` };
}

const gathered = async (stream: AsyncIterable<string | null | undefined>) => {
  let text = '';
  for await (const part of stream) text += part ?? '';
  return text;
};

describe.each(Object.entries(CLIENTS))('%s', (name, client) => {
  test(`${name}: an unmodified client gets its text, whole and as a stream`, async () => {
    const { url, workers } = await gateway();
    const { signal } = new AbortController();
    if (client.whole) expect(await client.whole(url)).toBe(TEXT);
    expect(await gathered(client.stream(url, signal))).toBe(TEXT);
    await workers.idle();
  });

  test(`${name}: a client that hangs up within a stream frees its workers`, async () => {
    const { url, workers } = await gateway({ holdAt: 'in decode' });
    const hangUp = new AbortController();
    const reading = gathered(client.stream(url, hangUp.signal)).catch(() => 'ended');
    await workers.held();
    hangUp.abort();
    await workers.idle();
    await reading;
  });
});

test('a client of Ollama is told in words what is wrong, and lists the model', async () => {
  const { url } = await gateway();
  const client = new Ollama({ host: url });
  await expect(client.generate({ model: 'llama3', prompt: 'x' })).rejects.toThrow(/"llama3" is not served here/);
  expect((await client.list()).models.map(({ name }) => name)).toEqual(['tiny:latest']);
  expect((await client.show({ model: 'tiny' })).capabilities).toContain('insert');
});

test('a client of Mistral and one of OpenAI are told the code of what is wrong', async () => {
  const { url } = await gateway();
  const asked = mistral(url).fim.complete({ model: 'mistral-large', prompt: 'x' });
  await expect(asked).rejects.toMatchObject({ statusCode: 404, body: expect.stringContaining('model_not_found') });
  const completions = openai(url).completions.create({ model: 'gpt', prompt: 'x' });
  await expect(completions).rejects.toMatchObject({ status: 404, code: 'model_not_found' });
});
