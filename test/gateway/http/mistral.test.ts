import { expect, test } from 'vitest';
import { MINUET_CODESTRAL } from '../../support/editor-requests.ts';
import { fakeGateway, idOf, spelling, tokenizer } from '../../support/fake-gateway.ts';

const TEXT = 'item.price for item in cart)';

async function gateway() {
  const made = await fakeGateway({ token: spelling(TEXT), capacity: 4_096 });
  const post = (payload: object, url = '/v1/fim/completions') => made.app.inject({ method: 'POST', url, payload });
  return { ...made, post };
}

test.each(['/v1/fim/completions', '/fim/completions'])('%s answers in the shape of a chat', async (url) => {
  const { post, workers } = await gateway();
  const body = { ...MINUET_CODESTRAL, stream: false, min_tokens: 2, random_seed: 5, temperature: null, metadata: {} };
  const answer = await post(body, url);
  expect(answer.json()).toMatchObject({
    id: expect.stringMatching(/^cmpl-/),
    object: 'chat.completion',
    model: 'tiny',
    choices: [{ index: 0, message: { role: 'assistant', content: TEXT }, finish_reason: 'stop' }],
    usage: { completion_tokens: tokenizer.encode(TEXT).length + 1 },
  });
  expect(workers.prefills[0]!.choices![0]).toMatchObject({ seed: 5, minTokens: 2, temperature: 0.2 });
  expect(workers.prefills[0]!.tokenIds).toContain(idOf('<|fim_suffix|>'));
  await workers.idle();
});

test('a stream of Mistral has the text in deltas, and what it took in its last one', async () => {
  const { post } = await gateway();
  const events = (await post(MINUET_CODESTRAL)).payload.split('\n\n').slice(0, -1);
  expect(events.pop()).toBe('data: [DONE]');
  const chunks = events.map((event) => JSON.parse(event.slice('data: '.length)));
  expect(chunks.map(({ choices: [{ delta }] }) => delta.content).join('')).toBe(TEXT);
  expect(chunks.map(({ choices: [{ delta }] }) => delta.role).filter(Boolean)).toEqual(['assistant']);
  expect(chunks.filter(({ usage }) => usage)).toEqual([chunks.at(-1)]);
  expect(chunks.at(-1)).toMatchObject({ object: 'chat.completion.chunk', choices: [{ finish_reason: 'stop' }] });
});

test('what Mistral does not know is ignored and named, and what cannot be is refused', async () => {
  const { post } = await gateway();
  const answer = await post({
    prompt: 'x',
    suffix: null,
    max_tokens: null,
    model: 'codestral-latest',
    safe_prompt: true,
  });
  expect([answer.statusCode, answer.headers['x-llavacode-ignored']]).toEqual([200, 'safe_prompt']);
  for (const [body, param] of [
    [{}, 'prompt'],
    [{ prompt: 'x', max_tokens: 1, min_tokens: 2 }, 'min_tokens'],
  ] as const) {
    const refused = await post(body);
    expect([refused.statusCode, refused.json().error.param]).toEqual([400, param]);
  }
  for (const stop of [Array(17).fill('a'), 1, ['a', 1]]) {
    const refused = await post({ prompt: 'x', stop });
    expect([refused.statusCode, refused.json().error.message]).toEqual([
      400,
      expect.stringContaining('stop: must be a string or up to 16 strings'),
    ]);
  }
});
