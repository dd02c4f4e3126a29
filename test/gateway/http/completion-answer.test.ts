import { expect, test } from 'vitest';
import { fakeGateway, tokenizer } from '../../support/fake-gateway.ts';

test('best_of gives back the likeliest choices, and the usage counts the tokens of all', async () => {
  // The fake's logprob of id is -id / 100.
  const { complete } = await fakeGateway({ token: (_, choice) => [90, 70, 80][choice]! });
  const { choices, usage } = await complete({ prompt: 'x', n: 2, best_of: 3, max_tokens: 2 });
  expect(choices.map(({ text }) => text)).toEqual([70, 80].map((id) => tokenizer.decode([id, id])));
  expect(choices.map(({ index, logprobs }) => [index, logprobs])).toEqual([
    [0, null],
    [1, null],
  ]);
  expect(usage!.completion_tokens).toBe(6);
});
