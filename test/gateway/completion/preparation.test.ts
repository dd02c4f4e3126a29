import { expect, test } from 'vitest';
import { fakeGateway, idOf, spelling, tokenizer } from '../../support/fake-gateway.ts';

const TEXT = 'return self.items.pop()  # 😀 done\n\n\ndef next():';

test('prefill gets a fill-in-the-middle prompt, and decode the rest of the completion', async () => {
  const { complete, workers } = await fakeGateway({ token: spelling(TEXT) });
  await complete({ prompt: 'a <|fim_middle|>', suffix: 'b', max_tokens: 4, seed: 5, temperature: 0.5, top_k: -1 });
  const [prefill] = workers.prefills;
  expect(prefill).toMatchObject({ readers: 1, promptLogprobs: -1, fingerprint: 'f'.repeat(64) });
  expect(prefill!.tokenIds).toEqual([
    idOf('<|fim_prefix|>'),
    ...tokenizer.encode('a <|fim_middle|>'),
    idOf('<|fim_suffix|>'),
    ...tokenizer.encode('b'),
    idOf('<|fim_middle|>'),
  ]);
  expect(prefill!.choices![0]).toMatchObject({ seed: 5, temperature: 0.5, topK: 0, logprobs: -1 });
  expect(prefill!.choices![0]!.stopTokenIds).toContain(idOf('<|endoftext|>'));
  expect(workers.decodes[0]).toMatchObject({ choice: 0, maxTokens: 4, sampling: prefill!.choices![0] });
  expect(workers.decodes[0]!.kv).toMatchObject({ positions: prefill!.tokenIds!.length });
});
