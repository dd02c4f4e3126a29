/** One prompt that is sent three times at once, as some editors do, over two real prefill workers. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { startTestSystem, type TestSystem, TINY_CODER } from '../support/system.ts';

let system: TestSystem;
beforeAll(async () => {
  system = await startTestSystem(TINY_CODER, { capacity: 1024 }, { prefill: 2 });
}, 240_000);
afterAll(() => system.close(), 60_000);

const CODE = Array.from({ length: 20 }, (_, i) => `value_${i} = compute(${i}, total)\n`).join('');

async function complete(body: object) {
  const response = await fetch(`${system.url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ max_tokens: 4, temperature: 0, ...body }),
  });
  const { choices, usage } = (await response.json()) as {
    choices: { text: string }[];
    usage: { prompt_tokens: number; prompt_tokens_details: { cached_tokens: number } };
  };
  const { prompt_tokens: tokens, prompt_tokens_details: details } = usage;
  return { text: choices[0]!.text, tokens, computed: tokens - details.cached_tokens };
}

test('three equal prompts in flight are computed once, and the next keystroke reuses them', async () => {
  const body = { prompt: `${CODE}result = `, suffix: '\nreturn result\n' };
  const answers = await Promise.all([complete(body), complete(body), complete(body)]);
  expect(new Set(answers.map(({ text }) => text)).size).toBe(1);
  const { tokens } = answers[0]!;
  const computed = answers.map((answer) => answer.computed).sort((a, b) => b - a);
  expect(computed[0]).toBe(tokens);
  // A block of the prefix cache has 16 tokens: what is left is computed again.
  expect(computed[1]! + computed[2]!).toBeLessThanOrEqual(2 * 17);
  // No session was named: the worker is found by the beginning of the prompt.
  const next = await complete({ ...body, prompt: `${CODE}result = v` });
  expect(next.computed).toBeLessThan(tokens / 4);
}, 120_000);
