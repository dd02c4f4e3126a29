/**
 * Speculation in whole systems, of real processes with the model that ships: the answers are, byte for byte, those of a
 * system without it, at any temperature, with several choices, penalties, bias, stop strings and logprobs.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startTestSystem, type TestSystem, TINY_CODER } from '../support/system.ts';

const CODE = `class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        return self.items.pop()

    def peek(self):
        return self.items[-1]

`;

const BODIES: Readonly<Record<string, object>> = {
  greedy: { temperature: 0 },
  sampled: { temperature: 0.8, seed: 7 },
  'nucleus with a small top_k': { temperature: 1.1, seed: 8, top_p: 0.9, top_k: 20 },
  'four choices': { temperature: 0.8, seed: 9, n: 4 },
  'the best of three': { temperature: 0.7, seed: 10, best_of: 3 },
  penalties: { temperature: 0, frequency_penalty: 0.6, presence_penalty: 0.3 },
  bias: { temperature: 0.8, seed: 11, logit_bias: { 11: 4, 12: -4 } },
  'stop strings across tokens': { temperature: 0, stop: ['return self', 'def p'] },
  logprobs: { temperature: 0, logprobs: 3 },
  min_tokens: { temperature: 0.8, seed: 12, min_tokens: 30 },
  'fill in the middle': { temperature: 0, suffix: '\n\n    def size(self):\n        return len(self.items)\n' },
  'stop at the block': { temperature: 0, stop_at: 'block', language: 'python' },
};

async function post(system: TestSystem, body: object) {
  const response = await fetch(`${system.url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(120_000),
  });
  expect(response.status).toBe(200);
  return (await response.json()) as { choices: { text: string }[]; usage: Record<string, object> };
}

async function counted(system: TestSystem, metric: string): Promise<number> {
  const decoders = system.processes.filter(({ name }) => /^(decode|colocated)/.test(name));
  let sum = 0;
  for (const { metricsAddress } of decoders) {
    const text = await (await fetch(`http://${metricsAddress}/metrics`)).text();
    for (const [, value] of text.matchAll(new RegExp(`^${metric}(?:\\{[^}]*\\})? (\\S+)$`, 'gm'))) sum += Number(value);
  }
  return sum;
}

const MODES = ['disaggregated', 'colocated'] as const;
let plain: TestSystem;
beforeAll(async () => {
  plain = await startTestSystem(TINY_CODER, { slots: 4, capacity: 1024 });
}, 300_000);
afterAll(() => plain?.close());

describe.each(MODES)('%s', (mode) => {
  let system: TestSystem;
  beforeAll(async () => {
    const speculation = { speculation: 'auto' };
    system = await startTestSystem(
      TINY_CODER,
      { slots: 4, capacity: 1024 },
      {
        mode,
        gateway: speculation,
        decodeOnly: speculation,
      },
    );
  }, 300_000);
  afterAll(() => system?.close());

  test.each(Object.entries(BODIES))('the answer is the same: %s', async (_, fields) => {
    const body = { prompt: CODE, max_tokens: 48, return_token_ids: true, ...fields };
    const expected = await post(plain, body);
    // Once more with its own output as the prediction, and with one that is wrong after a while.
    const [{ text }] = expected.choices as [{ text: string }];
    for (const content of [undefined, text, `${text.slice(0, 20)} and something else`]) {
      const prediction = content === undefined ? {} : { prediction: { type: 'content', content } };
      const { choices } = await post(system, { ...body, ...prediction });
      expect(choices).toEqual(expected.choices);
    }
  });

  test('usage and metrics say what became of the tokens of a prediction', async () => {
    const body = { prompt: CODE, max_tokens: 64, temperature: 0, ignore_eos: true };
    const { choices } = await post(plain, body);
    const prediction = { type: 'content', content: choices[0]!.text };
    let [accepted, rejected] = [0, 0];
    // How many are proposed goes by the times of runs on this machine.
    for (let i = 0; i < 8 && accepted === 0; i++) {
      const { usage } = await post(system, { ...body, prediction });
      const details = usage['completion_tokens_details'] as Record<string, number>;
      accepted += details['accepted_prediction_tokens']!;
      rejected += details['rejected_prediction_tokens']!;
    }
    expect((await post(system, body)).usage).not.toHaveProperty('completion_tokens_details');
    const proposed = await counted(system, 'vllm:spec_decode_num_draft_tokens_total');
    const taken = await counted(system, 'vllm:spec_decode_num_accepted_tokens_total');
    expect(taken).toBe(await counted(system, 'vllm:spec_decode_num_accepted_tokens_per_pos_total'));
    expect(taken).toBeGreaterThanOrEqual(accepted);
    expect(proposed - taken).toBeGreaterThanOrEqual(rejected);
  });
});
