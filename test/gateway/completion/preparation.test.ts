import { expect, test } from 'vitest';
import { ServingError } from '../../../services/lib/process/errors.ts';
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

test('a file whose lines end in \\r\\n reaches the model with \\n, and the answer has the line ends of the file', async () => {
  const { complete, workers } = await fakeGateway({ token: spelling('a\nb') });
  const ask = async (eol: string, more: object = {}) => {
    const answer = await complete({ prompt: `x = 1${eol}y = `, suffix: `${eol}z${eol}`, max_tokens: 9, ...more });
    return [answer.choices[0]!.text, workers.prefills.at(-1)!.tokenIds] as const;
  };
  const [lf, lfIds] = await ask('\n');
  const [crlf, crlfIds] = await ask('\r\n');
  expect([lf, crlf]).toEqual(['a\nb', 'a\r\nb']);
  expect(crlfIds).toEqual(lfIds);
  const [echoed] = await ask('\r\n', { suffix: undefined, echo: true });
  expect(echoed).toMatch(/^x = 1\r\ny = /);
});

test('a request of no tokens computes its prompt and decodes nothing: a warm-up', async () => {
  const { complete, workers } = await fakeGateway({ token: spelling(TEXT) });
  const answer = await complete({ prompt: 'def f(', suffix: ')', max_tokens: 0 });
  expect(answer).toMatchObject({ status: 200, choices: [{ text: '', finish_reason: 'length' }] });
  expect(answer.usage).toMatchObject({ completion_tokens: 0, prompt_tokens: workers.prefills[0]!.tokenIds!.length });
  expect([workers.prefills[0]!.readers, workers.decodes.length]).toEqual([0, 0]);
  await workers.idle();
});

test('a prompt that the client has framed itself is searched for and cut around its cursor', async () => {
  const queries: { before: string; after: string }[] = [];
  const retrieval = {
    retrieve: async ({ before, after }: { before: string; after: string }) => {
      queries.push({ before, after });
      throw new ServingError('store_unavailable', 'the store is away');
    },
  };
  const { complete, workers } = await fakeGateway({ token: spelling(TEXT) }, { retrieval });
  const [left, right] = ['first\n'.repeat(200), 'last\n'.repeat(200)];
  const prompt = `<|fim_prefix|>${left}<|fim_suffix|>${right}<|fim_middle|>`;
  expect(await complete({ prompt, max_tokens: 2, rag: { repo: 'r' } })).toMatchObject({ status: 200 });
  await complete({ prompt: left, suffix: right, max_tokens: 2, rag: { repo: 'r' } });
  expect(queries[0]).toEqual({ before: left, after: right });
  expect(workers.prefills[0]!.tokenIds).toEqual(workers.prefills[1]!.tokenIds);
});

test('a suffix that the model cannot take is reported in the answer, in a header and in the log', async () => {
  const gateway = await fakeGateway({ token: spelling(TEXT) }, { promptFormat: 'prefix-only' });
  const answer = await gateway.complete({ prompt: 'a', suffix: 'b', max_tokens: 2 });
  expect(answer).toMatchObject({
    status: 200,
    suffix: 'unsupported',
    headers: { 'x-llavacode-suffix': 'unsupported' },
  });
  const [first, second] = await gateway.stream({ prompt: 'a', suffix: 'b', max_tokens: 2 });
  expect(first).toMatchObject({ suffix: 'unsupported' });
  expect(second).not.toHaveProperty('suffix');
  const none = await gateway.complete({ prompt: 'a', suffix: '', max_tokens: 2 });
  expect(none).not.toHaveProperty('suffix');
  expect(none.headers).not.toHaveProperty('x-llavacode-suffix');
  await gateway.app.close();
  expect(gateway.lines.find(({ suffix }) => suffix === 'unsupported')).toBeDefined();
});

test('with --suffix-unsupported refuse, a suffix that the model cannot take is 400', async () => {
  const options = { promptFormat: 'prefix-only', suffixUnsupported: 'refuse' } as const;
  const { complete, workers } = await fakeGateway({ token: spelling(TEXT) }, options);
  const refused = await complete({ prompt: 'a', suffix: 'b', max_tokens: 2 });
  expect(refused).toMatchObject({ status: 400, error: { code: 'suffix_unsupported', param: 'suffix' } });
  expect(refused.error!.message).toContain('--suffix-unsupported report');
  expect(workers.prefills).toEqual([]);
  expect(await complete({ prompt: 'a', max_tokens: 2 })).toMatchObject({ status: 200 });
});

test('of a prompt that is given back all logprobs are asked for, and with a given beginning those of it alone', async () => {
  const { complete, workers } = await fakeGateway({ token: spelling('c') });
  const body = { prompt: 'a = ', echo: true, logprobs: 0, max_tokens: 1 };
  await complete(body);
  expect(workers.prefills.at(-1)).toMatchObject({ promptLogprobs: 0, promptLogprobsFrom: 0 });
  const { choices } = await complete({ ...body, completion_prefix: 'b.b' });
  const { tokenIds, promptLogprobsFrom } = workers.prefills.at(-1)!;
  expect(tokenIds!.slice(promptLogprobsFrom)).toEqual([...tokenizer.encode('b.b')]);
  expect(choices[0]!.logprobs!.token_logprobs.slice(0, -1)).not.toContain(null);
});
