import { setImmediate as nextTurn } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { RequestRecord } from '../../../services/gateway/completion/request-record.ts';
import { completionBody } from '../../../services/gateway/http/completion-body.ts';
import { fakeGateway, idOf, spelling, tokenizer } from '../../support/fake-gateway.ts';

const TEXT = 'return self.items.pop()  # 😀 done\n\n\ndef next():';
const tokens = tokenizer.encode(TEXT).length;

/** What a stream's chunks add up to, choice by choice. */
function gathered(chunks: Awaited<ReturnType<Awaited<ReturnType<typeof fakeGateway>>['stream']>>) {
  const whole = new Map<number, { text: string; finish: string | null; ids: number[]; logprobs: unknown[][] }>();
  for (const choice of chunks.flatMap((chunk) => chunk.choices)) {
    const sum = whole.get(choice.index) ?? { text: '', finish: null, ids: [], logprobs: [[], [], [], []] };
    whole.set(choice.index, sum);
    sum.text += choice.text;
    sum.finish = choice.finish_reason;
    sum.ids.push(...(choice.token_ids ?? []));
    if (choice.logprobs === null) continue;
    for (const [i, list] of Object.values(choice.logprobs).entries()) sum.logprobs[i]!.push(...list);
  }
  return whole;
}

describe('a completion', () => {
  test('has OpenAI’s shape and ends at the end of text', async () => {
    const gateway = await fakeGateway({ token: spelling(TEXT) });
    const answer = await gateway.complete({ model: 'tiny', prompt: 'def pop(self):\n', suffix: '', max_tokens: 100 });
    expect(answer).toMatchObject({
      status: 200,
      id: expect.stringMatching(/^cmpl-/),
      object: 'text_completion',
      created: expect.any(Number),
      model: 'tiny',
      choices: [{ index: 0, text: TEXT, logprobs: null, finish_reason: 'stop' }],
      usage: { completion_tokens: tokens + 1, prompt_tokens_details: { cached_tokens: 2, soft_tokens: 0 } },
    });
    expect(answer.usage!.prompt_tokens).toBe(gateway.workers.prefills[0]!.tokenIds!.length);
    expect(answer.usage!.total_tokens).toBe(answer.usage!.prompt_tokens + tokens + 1);
    expect(answer).not.toHaveProperty('rag');
    expect(answer.headers['x-request-id']).toBe(answer.id.slice('cmpl-'.length));
    await gateway.workers.idle();
  });

  test('asks prefill for a FIM prompt and decode for the rest of it', async () => {
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

  test('of one token needs no decoder', async () => {
    const { complete, workers } = await fakeGateway({ token: () => 70 });
    const { choices, usage } = await complete({ prompt: 'x', max_tokens: 1 });
    expect(choices[0]).toMatchObject({ text: tokenizer.decode([70]), finish_reason: 'length' });
    expect(usage!.completion_tokens).toBe(1);
    expect(workers.decodes).toEqual([]);
    expect(workers.prefills[0]!.readers).toBe(0);
    await workers.idle();
  });

  test('whose first token ends it cancels its decoder', async () => {
    const { complete, workers } = await fakeGateway({ token: () => idOf('<|file_sep|>'), holdAt: 'before joined' });
    const { choices } = await complete({ prompt: 'x', suffix: 'y' });
    expect(choices[0]).toMatchObject({ text: '', finish_reason: 'stop' });
    await workers.idle();
  });

  test('whose first token ends it leaves no KV staged while another choice goes on', async () => {
    let openInDecode = 0;
    const { complete, workers } = await fakeGateway({
      token: (position, choice) => (choice === 0 && position === 0 ? idOf('<|endoftext|>') : 70),
      trouble: ({ stage, call, position }) => {
        if (stage === 'before joined' && call === 0) return 'hang'; // it waits for a slot
        if (stage === 'in decode' && position === 8) openInDecode = workers.open;
        return undefined;
      },
    });
    const { choices } = await complete({ prompt: 'x', max_tokens: 12, n: 2 });
    expect(choices.map(({ finish_reason }) => finish_reason)).toEqual(['stop', 'length']);
    expect(openInDecode).toBe(1); // the decoder of the other: prefill waits for nobody
    await workers.idle();
  });

  test('of many long echoes builds one when the one before is out', async () => {
    const { journey } = await fakeGateway({ token: () => 70 });
    const request = completionBody.parse({ prompt: 'x', n: 8, max_tokens: 0, echo: true, logprobs: 1 });
    let [open, most, came] = [0, 0, 0];
    const emit = async () => {
      came++;
      most = Math.max(most, ++open);
      await nextTurn();
      open--;
    };
    const signal = new AbortController().signal;
    const deadlineMs = performance.now() + 60_000;
    await journey.complete(request, { id: 'r', tenant: 't', record: new RequestRecord(), signal, deadlineMs, emit });
    expect([came, most]).toEqual([8, 1]);
  });

  test('goes on beyond the end of text when told to, and never shows it', async () => {
    const { complete, workers } = await fakeGateway({ token: (i) => (i % 2 ? idOf('<|endoftext|>') : 70) });
    const { choices } = await complete({ prompt: 'x', max_tokens: 5, ignore_eos: true, return_token_ids: true });
    expect(choices[0]).toMatchObject({ text: tokenizer.decode([70, 70, 70]), finish_reason: 'length' });
    expect(choices[0]!.token_ids).toHaveLength(5);
    expect(choices[0]!.prompt_token_ids).toEqual(tokenizer.encode('x'));
    expect(workers.prefills[0]!.choices![0]!.stopTokenIds).toEqual([]);
  });
});

describe('a stream', () => {
  test.each([
    ['alone', {}],
    ['of several choices and prompts', { n: 3, prompt: ['a', 'b'] }],
    ['with logprobs and ids', { logprobs: 2, return_token_ids: true }],
    ['with stop strings', { stop: ['\n\n', 'never'] }],
    ['with the prompt in front', { echo: true, logprobs: 0, prompt: 'é <|fim_pad|>' }],
    ['within a character', { max_tokens: tokenizer.encode('return self.items.pop()  # 😀').length - 1 }],
  ])('%s adds up to the whole answer', async (_, more) => {
    for (const stepSize of [1, 3]) {
      const gateway = await fakeGateway({ token: spelling(TEXT), stepSize });
      const body = { prompt: 'def', max_tokens: 60, seed: 1, ...more };
      const whole = await gateway.complete(body);
      const chunks = await gateway.stream({ ...body, stream_options: { include_usage: true } });
      const sums = gathered(chunks);
      expect(sums.size).toBe(whole.choices.length);
      for (const choice of whole.choices) {
        expect(sums.get(choice.index)).toEqual({
          text: choice.text,
          finish: choice.finish_reason,
          ids: choice.token_ids ?? [],
          logprobs: choice.logprobs === null ? [[], [], [], []] : Object.values(choice.logprobs),
        });
      }
      expect(chunks.at(-1)).toMatchObject({ choices: [], usage: whole.usage });
      expect(chunks.slice(0, -1).every((chunk) => chunk.usage === null)).toBe(true);
      await gateway.workers.idle();
    }
  });

  test('is server-sent events that no proxy holds back', async () => {
    const { app } = await fakeGateway({ token: spelling('ab') });
    const { headers, payload } = await app.inject({
      method: 'POST',
      url: '/v1/completions',
      headers: { 'x-request-id': 'mine-1' },
      payload: { prompt: 'x', stream: true },
    });
    expect(headers).toMatchObject({
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache',
      'x-request-id': 'mine-1',
    });
    expect(payload).toMatch(/^data: \{"id":"cmpl-mine-1"/);
    expect(payload).not.toContain('usage');
  });

  test('shows the first token before anything is decoded', async () => {
    const { app, workers } = await fakeGateway({ token: spelling(TEXT), holdAt: 'before joined' });
    const address = await app.listen({ port: 0 });
    const answer = await fetch(`${address}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ prompt: 'x', stream: true }),
    });
    const { value } = await answer.body!.getReader().read();
    const event = JSON.parse(Buffer.from(value!).toString().slice('data: '.length));
    expect(event.choices[0].text).toBe(tokenizer.decode(tokenizer.encode(TEXT).slice(0, 1)));
    await workers.held();
    app.server.closeAllConnections();
    await workers.idle();
    await app.close();
  });

  test('may carry usage in every chunk', async () => {
    const { stream } = await fakeGateway({ token: spelling('ab cd') });
    const stream_options = { include_usage: true, continuous_usage_stats: true };
    const chunks = await stream({ prompt: 'x', stream_options });
    expect(chunks.slice(0, -1).map((chunk) => chunk.usage!.completion_tokens)).toEqual(
      chunks.slice(0, -1).map((_, i) => i + 1),
    );
  });

  test('that fails on its way says so, and ends', async () => {
    const error = new Error('lost');
    const { stream, workers } = await fakeGateway({ token: spelling(TEXT), failAt: { stage: 'in decode', error } });
    const chunks = await stream({ prompt: 'x' });
    expect(chunks).toHaveLength(2);
    expect(chunks[1]!.error).toMatchObject({ type: 'server_error', code: 'internal' });
    expect(chunks[1]!.error!.message).not.toContain('lost');
    await workers.idle();
  });
});

describe('stop strings', () => {
  test('are never part of the text', async () => {
    const { complete, workers } = await fakeGateway({ token: spelling(TEXT) });
    const { choices } = await complete({ prompt: 'x', max_tokens: 60, stop: ['.pop', '\n'] });
    expect(choices[0]).toMatchObject({ text: 'return self.items', finish_reason: 'stop' });
    await workers.idle();
  });

  test('are looked for only after min_tokens', async () => {
    const { complete, workers } = await fakeGateway({ token: () => tokenizer.encode('a')[0]! });
    const { choices } = await complete({ prompt: 'x', max_tokens: 9, stop: 'a', min_tokens: 3 });
    expect(choices[0]).toMatchObject({ text: 'aaa', finish_reason: 'stop' });
    expect(workers.prefills[0]!.choices![0]!.minTokens).toBe(3);
  });

  test('may be token ids, which are text unless they are special', async () => {
    const [first, second] = tokenizer.encode('ab cd');
    const { complete } = await fakeGateway({ token: spelling('ab cd ef') });
    const { choices } = await complete({ prompt: 'x', stop_token_ids: [second] });
    expect(choices[0]).toMatchObject({ text: tokenizer.decode([first!, second!]), finish_reason: 'stop' });
  });
});

describe('choices', () => {
  test('have seeds of their own and indices prompt by prompt', async () => {
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

  test('without a seed draw differently every time', async () => {
    const { complete, workers } = await fakeGateway({ token: () => 70 });
    await complete({ prompt: 'x', max_tokens: 1 });
    await complete({ prompt: 'x', max_tokens: 1 });
    const [a, b] = workers.prefills.map(({ choices }) => choices![0]!.seed);
    expect(a).not.toBe(b);
  });

  test('best_of gives back the likeliest, and counts all', async () => {
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
});

describe('logprobs', () => {
  test('come with tokens, alternatives and offsets in characters', async () => {
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

  test('of an echoed prompt begin with one that nothing predicts', async () => {
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

  test('of the prompt alone cost no output', async () => {
    const { complete } = await fakeGateway({ token: () => 70 });
    const { choices, usage } = await complete({ prompt: [5, 6, 7], echo: true, logprobs: 0, max_tokens: 0 });
    expect(choices[0]).toMatchObject({ text: tokenizer.decode([5, 6, 7]), finish_reason: 'length' });
    expect(choices[0]!.logprobs!.tokens).toHaveLength(3);
    expect(usage!.completion_tokens).toBe(0);
  });
});
