import { expect, test } from 'vitest';
import { tokenizerWithChat } from '../../support/chat-tokenizer.ts';
import { fakeGateway, spelling, tokenizer } from '../../support/fake-gateway.ts';

const TEXT = 'Use sum().';
const MESSAGES = [
  { role: 'system', content: 'You write code.' },
  {
    role: 'user',
    content: [
      { type: 'text', text: 'Add ' },
      { type: 'text', text: 'numbers' },
    ],
  },
];
const PROMPT =
  '<|fim_pad|>system: You write code.<|endoftext|>\n<|fim_pad|>user: Add numbers<|endoftext|>\n<|fim_pad|>assistant: ';

async function gateway(withTemplate = true) {
  const chat = withTemplate ? await tokenizerWithChat() : undefined;
  const made = await fakeGateway({ token: spelling(TEXT), capacity: 4_096 }, chat ? { tokenizer: chat } : {});
  const post = (payload: object) => made.app.inject({ method: 'POST', url: '/v1/chat/completions', payload });
  return { ...made, post };
}

test('a chat is answered by the template of the model, whose names of tokens are tokens', async () => {
  const { post, workers } = await gateway();
  const answer = await post({ messages: MESSAGES, model: 'tiny', max_completion_tokens: 50, temperature: 0 });
  expect(answer.json()).toMatchObject({
    object: 'chat.completion',
    choices: [{ index: 0, message: { role: 'assistant', content: TEXT }, finish_reason: 'stop' }],
    usage: { completion_tokens: tokenizer.encode(TEXT).length + 1 },
  });
  expect(workers.prefills[0]!.tokenIds).toEqual(tokenizer.encode(PROMPT, 'as tokens'));
});

test('a chat as a stream has its role first, its text in deltas, and its usage last if that is asked', async () => {
  const { post } = await gateway();
  const body = { messages: MESSAGES, n: 2, stream: true, stream_options: { include_usage: true } };
  const events = (await post(body)).payload.split('\n\n').slice(0, -1);
  expect(events.pop()).toBe('data: [DONE]');
  const chunks = events.map((event) => JSON.parse(event.slice('data: '.length)));
  expect(chunks.pop()).toMatchObject({ choices: [], usage: { total_tokens: expect.any(Number) } });
  for (const index of [0, 1]) {
    const own = chunks.map(({ choices: [choice] }) => choice).filter((choice) => choice.index === index);
    expect(own[0].delta.role).toBe('assistant');
    expect(own.map(({ delta }) => delta.content).join('')).toBe(TEXT);
  }
});

test('a model without a chat template refuses chats, and names the remedy', async () => {
  const { post } = await gateway(false);
  const answer = await post({ messages: MESSAGES });
  expect(answer.statusCode).toBe(400);
  expect(answer.json().error).toMatchObject({
    code: 'chat_unsupported',
    message: expect.stringMatching(/no chat template.*\/v1\/completions.*chat_template/),
  });
});

test.each([
  [{}, 'messages', /messages/],
  [{ messages: [] }, 'messages', /at least one/],
  [{ messages: [{ role: 'user', content: [{ type: 'image_url' }] }] }, /^messages/, /text/],
  [{ messages: MESSAGES, tools: [{ type: 'function' }] }, 'tools', /not supported/],
  [{ messages: MESSAGES, response_format: { type: 'json_object' } }, 'response_format', /only as text/],
  [{ messages: MESSAGES, logprobs: true }, 'logprobs', /only as false/],
  [{ messages: [{ role: 'robot', content: 'x' }] }, 'messages', /refuses the messages: .*robot/],
])('a chat that cannot be answered is refused: %j', async (body, param, message) => {
  const { post } = await gateway();
  const answer = await post(body);
  expect(answer.statusCode).toBe(400);
  expect(answer.json().error).toMatchObject({
    param: expect.stringMatching(param),
    message: expect.stringMatching(message),
  });
});

test('fields that change nothing are taken, and unknown ones are named', async () => {
  const { post } = await gateway();
  const harmless = {
    tools: [],
    response_format: { type: 'text' },
    logprobs: false,
    reasoning_effort: 'low',
    stop: null,
  };
  const answer = await post({ messages: MESSAGES, ...harmless });
  expect([answer.statusCode, answer.headers['x-llavacode-ignored']]).toEqual([200, 'reasoning_effort']);
});
