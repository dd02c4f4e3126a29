import { expect, test } from 'vitest';
import { fakeGateway, tokenizer } from '../../support/fake-gateway.ts';

test('choices have seeds of their own, and indices prompt by prompt', async () => {
  const { complete, workers } = await fakeGateway({ token: (_, choice) => 70 + choice });
  const { choices, usage } = await complete({ prompt: [[5, 6], [7]], n: 2, seed: -3, max_tokens: 2 });
  expect(choices.map(({ index }) => index)).toEqual([0, 1, 2, 3]);
  expect(choices.map(({ text }) => text)).toEqual([70, 71, 70, 71].map((id) => tokenizer.decode([id, id])));
  expect(usage).toMatchObject({ prompt_tokens: 3, completion_tokens: 8 });
  const seeds = workers.prefills.map(({ choices }) => choices!.map(({ seed }) => Number(seed)));
  expect(seeds[0]).toEqual(seeds[1]);
  expect(new Set(seeds[0]).size).toBe(2);
  for (const seed of seeds[0]!) expect(Number.isSafeInteger(seed) && seed >= 0).toBe(true);
  expect(workers.decodes.map(({ choice, sampling }) => [choice, sampling!.seed])).toEqual(
    expect.arrayContaining([
      [0, seeds[0]![0]],
      [1, seeds[0]![1]],
    ]),
  );
});

test('a request without a seed draws differently every time', async () => {
  const { complete, workers } = await fakeGateway({ token: () => 70 });
  await complete({ prompt: 'x', max_tokens: 1 });
  await complete({ prompt: 'x', max_tokens: 1 });
  const [a, b] = workers.prefills.map(({ choices }) => choices![0]!.seed);
  expect(a).not.toBe(b);
});
