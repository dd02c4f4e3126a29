import { describe, expect, test } from 'vitest';
import { echoSteps } from '../../../services/gateway/completion/choice.ts';
import { completionBody } from '../../../services/gateway/http/completion-body.ts';
import { NO_SOFT_TOKENS } from '../../../services/lib/request/token-prompt.ts';
import { fakeGateway, idOf, spelling, tokenizer } from '../../support/fake-gateway.ts';

const TEXT = 'return self.items.pop()  # 😀 done\n\n\ndef next():';

test('a completion that ignores the end of text goes on beyond it, and never shows it', async () => {
  const { complete, workers } = await fakeGateway({ token: (i) => (i % 2 ? idOf('<|endoftext|>') : 70) });
  const { choices } = await complete({ prompt: 'x', max_tokens: 5, ignore_eos: true, return_token_ids: true });
  expect(choices[0]).toMatchObject({ text: tokenizer.decode([70, 70, 70]), finish_reason: 'length' });
  expect(choices[0]!.token_ids).toHaveLength(5);
  expect(choices[0]!.prompt_token_ids).toEqual(tokenizer.encode('x'));
  expect(workers.prefills[0]!.choices![0]!.stopTokenIds).toEqual([]);
});

test('stop strings are never part of the text', async () => {
  const { complete, workers } = await fakeGateway({ token: spelling(TEXT) });
  const { choices } = await complete({ prompt: 'x', max_tokens: 60, stop: ['.pop', '\n'] });
  expect(choices[0]).toMatchObject({ text: 'return self.items', finish_reason: 'stop' });
  await workers.idle();
});

test('stop strings count only after min_tokens', async () => {
  const { complete, workers } = await fakeGateway({ token: () => tokenizer.encode('a')[0]! });
  const { choices } = await complete({ prompt: 'x', max_tokens: 9, stop: 'a', min_tokens: 3 });
  expect(choices[0]).toMatchObject({ text: 'aaa', finish_reason: 'stop' });
  expect(workers.prefills[0]!.choices![0]!.minTokens).toBe(3);
});

test('a stop token id is shown as text unless it is special', async () => {
  const [first, second] = tokenizer.encode('ab cd');
  const { complete } = await fakeGateway({ token: spelling('ab cd ef') });
  const { choices } = await complete({ prompt: 'x', stop_token_ids: [second] });
  expect(choices[0]).toMatchObject({ text: tokenizer.decode([first!, second!]), finish_reason: 'stop' });
});

test('logprobs come with tokens, alternatives and offsets in characters', async () => {
  const { complete } = await fakeGateway({ token: spelling('😀 a') });
  const { choices } = await complete({ prompt: 'x', logprobs: 2 });
  const { tokens, token_logprobs, top_logprobs, text_offset } = choices[0]!.logprobs!;
  const ids = [...tokenizer.encode('😀 a'), idOf('<|endoftext|>')];
  expect(token_logprobs).toEqual(ids.map((id) => -id / 100));
  expect(tokens.at(-1)).toBe('<|endoftext|>');
  expect(tokens[0]).toMatch(/^bytes:(\\x[0-9a-f]{2})+$/);
  expect(text_offset.at(-1)).toBe(3);
  expect(text_offset[0]).toBe(0);
  expect(Object.keys(top_logprobs[0]!).length).toBeGreaterThanOrEqual(2);
});

test('the logprobs of an echoed prompt begin with a token that nothing predicts', async () => {
  const { complete, workers } = await fakeGateway({ token: () => 70 });
  const { choices } = await complete({ prompt: 'def pop', echo: true, logprobs: 1, max_tokens: 1 });
  const ids = tokenizer.encode('def pop');
  expect(workers.prefills[0]!.promptLogprobs).toBe(1);
  expect(choices[0]!.text).toBe(`def pop${tokenizer.decode([70])}`);
  expect(choices[0]!.logprobs!.tokens).toEqual([...ids, 70].map((id) => tokenizer.decode([id])));
  expect(choices[0]!.logprobs!.token_logprobs).toEqual([null, ...ids.slice(1).map((id) => -id / 100), -0.7]);
  expect(choices[0]!.logprobs!.top_logprobs[0]).toBeNull();
  expect(choices[0]!.logprobs!.text_offset.at(-1)).toBe(7);
});

test('the beginning that a client gives a completion stands behind the prompt, and is echoed alone', async () => {
  const { complete, workers } = await fakeGateway({ token: () => 70 });
  const begun = tokenizer.encode('self.pop()');
  const body = { prompt: 'def f', suffix: '\n', completion_prefix: 'self.pop()' };
  const echoed = await complete({ ...body, echo: true, logprobs: 0, max_tokens: 0 });
  expect(workers.prefills[0]!.tokenIds!.slice(-begun.length)).toEqual(begun);
  expect(echoed.choices[0]!.text).toBe('self.pop()');
  expect(echoed.choices[0]!.logprobs!.token_logprobs).toEqual(begun.map((id) => -id / 100));
  const { choices } = await complete({ ...body, max_tokens: 2 });
  expect(choices[0]!.text).toBe(tokenizer.decode([70, 70]));
});

test('a beginning that leaves no room for a prompt is refused, whatever stands before it', async () => {
  const { complete } = await fakeGateway({ token: () => 70, capacity: 16 });
  const prefix = { completion_prefix: 'value = compute(x, y)\n'.repeat(20), max_tokens: 1 };
  for (const body of [{ prompt: 'x' }, { prompt: [5, 6] }, { prompt: 'x', suffix: 'y' }]) {
    const { status, error } = await complete({ ...body, ...prefix });
    expect([status, error!.code]).toEqual([400, 'context_length_exceeded']);
  }
});

test('an echoed prompt with no output has logprobs and costs no output token', async () => {
  const { complete } = await fakeGateway({ token: () => 70 });
  const { choices, usage } = await complete({ prompt: [5, 6, 7], echo: true, logprobs: 0, max_tokens: 0 });
  expect(choices[0]).toMatchObject({ text: tokenizer.decode([5, 6, 7]), finish_reason: 'length' });
  expect(choices[0]!.logprobs!.tokens).toHaveLength(3);
  expect(usage!.completion_tokens).toBe(0);
});

test('the offset of a token after a character that was never finished counts its replacement', async () => {
  const lead = tokenizer.encode('😀')[0]!;
  const [word] = tokenizer.encode(' before');
  const { complete } = await fakeGateway({ token: (position) => [lead, word!][position] ?? idOf('<|endoftext|>') });
  const { choices } = await complete({ prompt: 'x', logprobs: 0, max_tokens: 2 });
  expect(choices[0]!.text).toBe('\ufffd before');
  expect(choices[0]!.logprobs!.text_offset).toEqual([0, 1]);
  const echoed = await complete({ prompt: [lead, word], echo: true, logprobs: 0, max_tokens: 0 });
  expect(echoed.choices[0]!.logprobs!.text_offset).toEqual([0, 1]);
});

describe('a file whose lines end in CRLF', () => {
  const LINES = 'if x:\n    return 1\n\ndef';
  const crlf = LINES.replaceAll('\n', '\r\n');
  const prompt = 'def f(x):\r\n    ';

  test('a completion takes the line ends of the text around the cursor', async () => {
    const { complete } = await fakeGateway({ token: spelling(LINES) });
    const text = async (body: object) => (await complete({ max_tokens: 40, ...body })).choices[0]!.text;
    expect(await text({ prompt })).toBe(crlf);
    expect(await text({ prompt: 'x = ', suffix: '\r\ny' })).toBe(crlf);
    expect(await text({ prompt: tokenizer.encode(prompt), suffix: '' })).toBe(crlf);
    expect(await text({ prompt: 'def f(x):\n', suffix: '\r\n' })).toBe(LINES);
    const already = await fakeGateway({ token: spelling(crlf) });
    expect((await already.complete({ prompt, max_tokens: 40 })).choices[0]!.text).toBe(crlf);
  });

  test('stop strings match line ends of either kind', async () => {
    for (const output of [LINES, crlf]) {
      const { complete } = await fakeGateway({ token: spelling(output) });
      for (const stop of ['\n\n', '\r\n\r\n']) {
        const { choices } = await complete({ prompt, stop, max_tokens: 40 });
        expect(choices[0]).toMatchObject({ text: 'if x:\r\n    return 1', finish_reason: 'stop' });
      }
    }
  });

  test('token ids and logprobs are those of the model, and offsets point into the text', async () => {
    const { complete } = await fakeGateway({ token: spelling(LINES) });
    const ask = async (before: string) =>
      (await complete({ prompt: before, logprobs: 0, return_token_ids: true, max_tokens: 40 })).choices[0]!;
    const [plain, windows] = [await ask('def f(x):\n    '), await ask(prompt)];
    expect(windows.token_ids).toEqual(plain.token_ids);
    const { text_offset, ...same } = windows.logprobs!;
    expect(plain.logprobs).toMatchObject(same);
    for (const [i, name] of same.tokens.slice(0, -1).entries()) {
      expect(windows.text.slice(text_offset[i])).toSatisfy((rest: string) =>
        rest.startsWith(name.replaceAll('\n', '\r\n')),
      );
    }
  });

  test('a stream adds up to the whole answer', async () => {
    for (const output of [LINES, crlf]) {
      const { stream } = await fakeGateway({ token: spelling(output) });
      const chunks = await stream({ prompt, stop: '\ndef', max_tokens: 40 });
      const text = chunks.map(({ choices }) => choices[0]?.text ?? '').join('');
      expect(text).toBe('if x:\r\n    return 1\r\n');
    }
  });
});

test.each([
  ['of ids', { prompt: Array(50_000).fill(70) }],
  ['of text', { prompt: 'a'.repeat(1_000_000) }],
  ['of text that is cut', { prompt: 'a'.repeat(1_000_000), truncate_prompt_tokens: 50_000 }],
])('the echo of a long prompt %s is made in many steps', (_, body) => {
  const request = completionBody.parse({ echo: true, ...body });
  const prompt = { ids: new Int32Array(50_000).fill(70), soft: NO_SOFT_TOKENS };
  const steps = echoSteps(request, 0, prompt, [], tokenizer);
  let count = 0;
  let made = steps.next();
  for (; !made.done; made = steps.next()) count++;
  expect(count).toBeGreaterThan(90);
  expect(made.value.tokens).toHaveLength(50_000);
  expect(made.value.length).toBe(made.value.text.length);
});
