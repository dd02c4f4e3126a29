/** Bodies near those of editors: whatever comes, the gateway answers in the words of the route, and keeps nothing. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { ERRORS, isErrorCode } from '../../services/lib/process/errors.ts';
import { metrics } from '../../services/lib/process/metrics.ts';
import { tokenizerWithChat } from '../support/chat-tokenizer.ts';
import * as requests from '../support/editor-requests.ts';
import { fakeGateway } from '../support/fake-gateway.ts';
import { distorted, fuzz, HANG_MS, TIMEOUT_MS } from './budget.ts';

const gateway = await fakeGateway(
  { token: (position, choice, seed) => 70 + ((position * 7 + choice + seed) % 100), slots: 200, capacity: 512 },
  { requestTimeoutMs: HANG_MS, maxInflight: 1000, tokenizer: await tokenizerWithChat() },
);

/** Few tokens, so that many bodies are tried. */
const short = { n_predict: 3, max_tokens: 3 };
const CHAT = {
  messages: [
    { role: 'system', content: 'You write code.' },
    { role: 'user', content: [{ type: 'text', text: 'Add.' }] },
  ],
  n: 2,
  stream: true,
  stream_options: { include_usage: true },
  stop: ['\n'],
  seed: 1,
  tools: [],
  response_format: { type: 'text' },
};
const { LLAMA_VIM, LLAMA_VSCODE, MINUET_CODESTRAL, TABBY, ZED_OLLAMA } = requests;
/** A body that each route takes. */
const BODIES: readonly (readonly [url: string, body: object])[] = [
  ['/infill', { ...LLAMA_VIM, ...short, stream: true, return_progress: true }],
  ['/infill', { ...LLAMA_VSCODE, ...short, id_slot: 3, seed: -1 }],
  ['/completion', { prompt: [[5, 6], [7]], ...short, stop: ['x'], rag: { mode: 'off' }, min_p: 0.1 }],
  ['/tokenize', { content: 'def f', add_special: true, parse_special: false, with_pieces: true }],
  ['/detokenize', { tokens: [5, 6, 4095] }],
  ['/v1/fim/completions', { ...MINUET_CODESTRAL, ...short, min_tokens: 1, random_seed: 5, metadata: { a: 1 } }],
  ['/api/generate', { ...ZED_OLLAMA, suffix: 'x', options: { num_predict: 3, seed: 1, min_p: 0, num_ctx: 9 } }],
  ['/api/generate', { model: 'tiny', keep_alive: 0, stream: true, format: '' }],
  ['/api/show', { model: 'tiny:latest' }],
  ['/v1/completions', { ...TABBY, debug_options: { return_prompt: true, return_snippets: true } }],
  ['/v1/events', { type: 'view', completion_id: 'cmpl-1', choice_index: 0, elapsed: 5 }],
  ['/beta/completions', { prompt: 'x', suffix: null, ...short, extra: {} }],
  ['/v1/engines/x/completions', { prompt: ['x', 'y'], stop: ['a'], n: 2, max_tokens: 0 }],
  ['/v1/chat/completions', { ...CHAT, ...short }],
];

const inputs = fc.oneof(...BODIES.map(([url, body]) => distorted(body).map((payload) => ({ url, payload }))));

/** A refusal, in whichever words. */
function expectRefusal(url: string, statusCode: number, payload: string): void {
  expect(statusCode, payload).toBeLessThan(500);
  const { error } = JSON.parse(payload);
  if (url.startsWith('/api/')) expect(typeof error).toBe('string');
  else expect(isErrorCode(error.code) && ERRORS[error.code as keyof typeof ERRORS].http).toBe(statusCode);
}

/** A stream that was begun has every value in one piece, and no failure among them. */
function expectStream(type: string, payload: string): void {
  const values = type.startsWith('text/event-stream')
    ? payload.split('\n\n').map((event) => event.slice('data: '.length))
    : payload.split('\n');
  for (const value of values.filter((text) => text !== '' && text !== '[DONE]')) {
    expect(JSON.parse(value).error).toBeUndefined();
  }
}

test('bodies near those of editors are answered or refused with a 4xx status, and leave nothing in flight', {
  timeout: TIMEOUT_MS,
}, async () => {
  await fuzz('bodies of editors', inputs, async ({ url, payload }) => {
    const headers = { 'content-type': 'application/json' };
    const answer = await gateway.app.inject({ method: 'POST', url, headers, payload: JSON.stringify(payload) });
    const type = String(answer.headers['content-type']);
    if (answer.statusCode !== 200) expectRefusal(url, answer.statusCode, answer.payload);
    else if (type.startsWith('application/json')) JSON.parse(answer.payload);
    else expectStream(type, answer.payload);
    await gateway.workers.idle();
    expect((await metrics.inflight.get()).values[0]?.value ?? 0).toBe(0);
    return answer.statusCode === 200;
  });
});

test('every body that is distorted here is taken as it is', async () => {
  for (const [url, payload] of BODIES) {
    const { statusCode, payload: answer } = await gateway.app.inject({ method: 'POST', url, payload });
    expect([url, statusCode, answer.slice(0, 300)]).toEqual([url, 200, expect.any(String)]);
  }
});
