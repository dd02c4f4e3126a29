/**
 * Editors and the whole system, as real processes: what they send reaches the model with compressed context, and a
 * warm-up spares the next keystroke the computation of the prompt.
 */
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { Ollama } from 'ollama';
import OpenAI from 'openai';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { jsonOfFiles } from '../support/archives.ts';
import * as requests from '../support/editor-requests.ts';
import { temporaryFolder } from '../support/models.ts';
import { startTestSystem, type TestSystem, TINY_CODER } from '../support/system.ts';

/** Real processes that load a model take long on a machine that is busy. */
const LIMIT = 300_000;
const FILES = {
  'cart.py':
    'class Cart:\n    def __init__(self):\n        self.items = []\n\n    def total(self):\n        return 1\n',
  'rates.py': 'RATES = {"de": 0.19}\n\n\ndef rate_of(country):\n    return RATES[country]\n',
};
const CONTEXT = /^compressed; chunks=[1-9]\d*$/;
const rag = { repo: 'shop', path: 'total.py' };
const model = 'tiny-coder';

/** Of the indexer and the gateway. */
const store = `lmdb:${await temporaryFolder()}`;
let system: TestSystem;
beforeAll(async () => {
  // A busy machine must not cost the context: its time is not what this test is about.
  const gateway = { retrievalBudgetMs: 60_000, servedName: model, store };
  system = await startTestSystem(TINY_CODER, {}, { gateway, indexer: { store } });
  const put = await ask('/v1/repos/shop', JSON.parse(jsonOfFiles(FILES).toString()), 'PUT');
  expect(put.status).toBe(200);
}, LIMIT);
afterAll(() => system?.close());

async function ask(path: string, body: object, method = 'POST') {
  const headers = { 'content-type': 'application/json' };
  const answer = await fetch(`${system.url}${path}`, { method, headers, body: JSON.stringify(body) });
  return { status: answer.status, context: answer.headers.get('x-llavacode-rag'), text: await answer.text() };
}

const short = { n_predict: 2, max_tokens: 2, n_cmpl: 1 };
test.each([
  ['llama.vim', '/infill', { ...requests.LLAMA_VIM, ...short }],
  ['llama.vscode', '/infill', { ...requests.LLAMA_VSCODE, ...short }],
  ['minuet, whole', '/v1/completions', { ...requests.MINUET, ...short, n_predict: undefined, n_cmpl: undefined }],
  ['minuet by Codestral', '/v1/fim/completions', { ...requests.MINUET_CODESTRAL, ...short, model }],
  ['Zed by Ollama', '/api/generate', { ...requests.ZED_OLLAMA, model, options: { num_predict: 2 } }],
])('a request of %s is answered with context of the repository', { timeout: LIMIT }, async (_, path, body) => {
  const { status, context, text } = await ask(path, { ...body, ...('model' in body && { model }), rag });
  expect([status, text]).toEqual([200, expect.any(String)]);
  expect(context).toMatch(CONTEXT);
});

test('unmodified clients get completions of the model, with context of the repository', {
  timeout: LIMIT,
}, async () => {
  const seen: (string | null)[] = [];
  const noting: typeof fetch = async (input, init) => {
    const answer = await fetch(input, init);
    seen.push(answer.headers.get('x-llavacode-rag'));
    return answer;
  };
  const client = new OpenAI({ baseURL: `${system.url}/v1`, apiKey: 'none', fetch: noting });
  const body = { model, prompt: 'def total(cart):\n    ', suffix: '\n', max_tokens: 2, temperature: 0, rag };
  const { choices } = await client.completions.create(body as OpenAI.CompletionCreateParamsNonStreaming);
  const ollama = new Ollama({ host: system.url, fetch: noting });
  const { max_tokens: num_predict, temperature, ...generate } = body;
  const options = { num_predict, temperature };
  const { response } = await ollama.generate({ ...generate, options, stream: false });
  expect(response).toBe(choices[0]!.text);
  const sdk = createOpenAICompatible({
    name: 'llavacode',
    baseURL: `${system.url}/v1`,
    fetch: noting,
  });
  const prompt = [
    { role: 'user' as const, content: [{ type: 'text' as const, text: 'rate_of(country) items total ' }] },
  ];
  await sdk.completionModel(model).doGenerate({ prompt, maxOutputTokens: 2, providerOptions: { llavacode: { rag } } });
  expect(seen).toEqual(Array(3).fill(expect.stringMatching(CONTEXT)));
});

test('after a warm-up a keystroke computes as little as after a completion', { timeout: LIMIT }, async () => {
  const code = (file: string) => `# ${file}\n${FILES['rates.py']}${FILES['cart.py']}\n\ndef total(cart):\n    net = `;
  const infill = async (file: string, typed: string, n_predict: number) => {
    const body = { input_prefix: code(file) + typed, input_suffix: '\n', n_predict, temperature: 0, rag };
    const { text } = await ask('/infill', body);
    return JSON.parse(text) as { tokens_evaluated: number; tokens_cached: number; tokens_predicted: number };
  };
  const computed = async (file: string, before: number) => {
    const first = await infill(file, '', before);
    expect(first.tokens_predicted).toBe(before);
    const next = await infill(file, 'sum', 2);
    return { tokens: next.tokens_evaluated, computed: next.tokens_evaluated - next.tokens_cached };
  };
  const warmed = await computed('a', 0);
  const completed = await computed('b', 2);
  expect(warmed).toEqual(completed);
  expect(warmed.computed).toBeLessThan(warmed.tokens / 4);
});
