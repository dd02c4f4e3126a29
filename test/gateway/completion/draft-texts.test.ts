/** What decode workers are told that an output may repeat, and what answers say of a prediction. */
import { describe, expect, test } from 'vitest';
import { bearer, keyEntry, keysOf } from '../../support/api-keys.ts';
import { type FakeGateway, fakeGateway, spelling, tokenizer } from '../../support/fake-gateway.ts';

const AUTO = { speculation: 'auto', typedThrough: 'off' } as const;
const model = { token: spelling('return 1') };
const body = { prompt: 'def one():\n    ', max_tokens: 6, temperature: 0 };

/** The texts of the newest decode call, by source. */
function sent({ workers }: FakeGateway) {
  const { drafts } = workers.decodes.at(-1)!;
  const texts = drafts?.texts?.map(({ source, tokenIds }) => [source, tokenizer.decode(tokenIds ?? [])]);
  return drafts && { texts, before: tokenizer.decode(drafts.before ?? []) };
}

describe('a decode call', () => {
  test('has no drafts without speculation', async () => {
    const gateway = await fakeGateway(model);
    await gateway.complete({ ...body, prediction: { type: 'content', content: 'return 1' } });
    expect(sent(gateway)).toBeUndefined();
  });

  test('has the prompt and the prediction, which comes last', async () => {
    const gateway = await fakeGateway(model, AUTO);
    const parts = [
      { type: 'text', text: 'return' },
      { type: 'text', text: ' 1' },
    ];
    await gateway.complete({ ...body, prediction: { type: 'content', content: parts } });
    expect(sent(gateway)!.before).toContain('def one()');
    expect(sent(gateway)!.texts!.at(-1)).toEqual(['prediction', 'return 1']);
  });

  test('in fill-in-the-middle has the text before the cursor apart from the text after it', async () => {
    const gateway = await fakeGateway(model, AUTO);
    await gateway.complete({ ...body, suffix: '\n\ndef two():\n' });
    const { texts, before } = sent(gateway)!;
    expect(before.endsWith('def one():\n    ')).toBe(true);
    expect(before).not.toContain('two');
    expect(texts!.find(([source]) => source === 'prompt')![1]).toContain('def two()');
  });

  test('has outputs of the same session, and none of another session or salt', async () => {
    const gateway = await fakeGateway(model, AUTO);
    const recent = () => sent(gateway)!.texts!.filter(([source]) => source === 'recent');
    await gateway.complete({ ...body, session: 'a' });
    expect(recent()).toEqual([]);
    await gateway.complete({ ...body, session: 'b' });
    expect(recent()).toEqual([]);
    await gateway.complete({ ...body, session: 'a', cache_salt: 'other' });
    expect(recent()).toEqual([]);
    await gateway.complete({ ...body, session: 'a' });
    expect(recent()).toHaveLength(1);
    expect(recent()[0]![1]).toContain('return 1');
  });

  test('never has outputs of another tenant', async () => {
    const keys = await keysOf([keyEntry('key-of-red', 'red'), keyEntry('key-of-blue', 'blue')]);
    const gateway = await fakeGateway(model, { ...AUTO, keys });
    const ask = (tenant: 'red' | 'blue') =>
      gateway.app.inject({
        method: 'POST',
        url: '/v1/completions',
        payload: body,
        headers: bearer(`key-of-${tenant}`),
      });
    const recent = () => sent(gateway)!.texts!.filter(([source]) => source === 'recent').length;
    await ask('red');
    await ask('blue');
    expect(recent()).toBe(0);
    await ask('red');
    expect(recent()).toBe(1);
  });
});

describe('usage', () => {
  const counted = { ...model, predicted: { accepted: 2, rejected: 1 }, stepSize: 3 };
  const prediction = { type: 'content', content: 'return 1' };

  test('says what became of a prediction, whole and streamed', async () => {
    const gateway = await fakeGateway(counted, AUTO);
    // One step brings what follows the first token.
    const details = { completion_tokens_details: { accepted_prediction_tokens: 2, rejected_prediction_tokens: 1 } };
    const whole = await gateway.complete({ ...body, prediction });
    expect(whole.usage).toMatchObject(details);
    const events = await gateway.stream({ ...body, prediction, stream_options: { include_usage: true } });
    expect(events.at(-1)!.usage).toMatchObject(details);
  });

  test('says nothing of one that was not sent', async () => {
    const gateway = await fakeGateway(counted, AUTO);
    expect((await gateway.complete(body)).usage).not.toHaveProperty('completion_tokens_details');
  });
});

test('a prediction of another type is refused by name', async () => {
  const gateway = await fakeGateway(model, AUTO);
  const { status, error } = await gateway.complete({ ...body, prediction: { type: 'audio', content: 'x' } });
  expect(status).toBe(400);
  expect(error).toMatchObject({ code: 'invalid_request', param: 'prediction.type' });
});
