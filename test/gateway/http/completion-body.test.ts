import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { completionBody } from '../../../services/gateway/http/completion-body.ts';
import { validationError } from '../../../services/gateway/http/errors.ts';
import type { CompletionRequest } from '../../../services/gateway/request.ts';
import { fakeGateway } from '../../support/fake-gateway.ts';

const gateway = await fakeGateway({ token: () => 70 });

describe('a body that is refused', () => {
  const cases: [body: object, param: string | null, message: RegExp][] = [
    [{}, 'prompt', /prompt: must be a string/],
    [{ prompt: 5 }, 'prompt', /must be a string/],
    [{ prompt: [] }, 'prompt', /not empty/],
    [{ prompt: [[]] }, 'prompt', /must be a string/],
    [{ prompt: ['a', 1] }, 'prompt', /must be a string/],
    [{ prompt: [-1] }, 'prompt', /must be a string/],
    [{ prompt: [...Array(2_000).fill([0]), ''] }, 'prompt', /must be a string/],
    [{ prompt: [4096] }, 'prompt', /token id 4096 is not in this model's vocabulary of 4096 tokens/],
    [{ prompt: '' }, 'prompt', /prompt is empty/],
    [{ prompt: 'a', promt: 'b' }, 'promt', /promt: is not a field/],
    [{ prompt: 'a', max_tokens: 1.5 }, 'max_tokens', /max_tokens/],
    [{ prompt: 'a', max_tokens: '5' }, 'max_tokens', /expected/],
    [{ prompt: 'a', max_tokens: 300 }, 'max_tokens', /leaves no room/],
    [{ prompt: 'a', temperature: 2.1 }, 'temperature', /temperature/],
    [{ prompt: 'a', top_p: 0 }, 'top_p', /top_p/],
    [{ prompt: 'a', cache_salt: 'a\ud800' }, 'cache_salt', /cache_salt: must be well-formed Unicode/],
    [{ prompt: 'a', session: '\udc00a' }, 'session', /session: must be well-formed Unicode/],
    [{ prompt: 'a', user: '\ud800' }, 'user', /user: must be well-formed Unicode/],
    [{ prompt: 'a', rag: { repo: 'r', path: 'a\udbff.py' } }, 'rag.path', /path: must be well-formed Unicode/],
    [{ prompt: 'a', top_k: -2 }, 'top_k', /top_k/],
    [{ prompt: 'a', min_p: 2 }, 'min_p', /min_p/],
    [{ prompt: 'a', n: 0 }, 'n', /n:/],
    [{ prompt: 'a', n: 129 }, 'n', /128/],
    [{ prompt: ['a', 'b'], n: 65 }, 'prompt', /at most 128/],
    [{ prompt: 'a', n: 3, best_of: 2 }, 'best_of', /at least n = 3/],
    [{ prompt: 'a', best_of: 2, stream: true }, 'best_of', /stream/],
    [{ prompt: 'a', stop: Array(17).fill('a') }, 'stop', /up to 16/],
    [{ prompt: 'a', stop: '' }, 'stop', /empty/],
    [{ prompt: 'a', logprobs: 6 }, 'logprobs', /5/],
    [{ prompt: 'a', logprobs: true }, 'logprobs', /number/],
    [{ prompt: 'a', frequency_penalty: -3 }, 'frequency_penalty', /-2/],
    [{ prompt: 'a', logit_bias: { x: 1 } }, 'logit_bias.x', /token id/],
    [{ prompt: 'a', logit_bias: { 5: 101 } }, 'logit_bias.5', /100/],
    [{ prompt: 'a', logit_bias: { 4096: 1 } }, 'logit_bias', /4096/],
    [{ prompt: 'a', stop_token_ids: [9999] }, 'stop_token_ids', /9999/],
    [{ prompt: 'a', stop_token_ids: Array(1_025).fill(0) }, 'stop_token_ids', /at most 1024 token ids/],
    [{ prompt: 'a', stop_token_ids: [''] }, 'stop_token_ids', /at most 1024 token ids/],
    [
      { prompt: 'a', logit_bias: Object.fromEntries(Array.from({ length: 1_025 }, (_, id) => [id, 1])) },
      'logit_bias',
      /at most 1024 entries/,
    ],
    [{ prompt: 'a', stop_token_ids: Array(1_024).fill(0), n: 17 }, 'logit_bias', /at most 16384/],
    [{ prompt: 'a', stop: ['x'.repeat(257)] }, 'stop', /more than 256 characters/],
    [{ prompt: 'a', top_k: 2 ** 32 + 1 }, 'top_k', /<=2147483647/],
    [
      { prompt: 'a', ...Object.fromEntries(Array.from({ length: 60 }, (_, i) => [`${'x'.repeat(300)}${i}`, 1])) },
      `${'x'.repeat(200)}…`,
      /^.{1,2600}$/,
    ],
    [{ prompt: 'a', min_tokens: 17 }, 'min_tokens', /at most max_tokens = 16/],
    [{ prompt: 'a', stream_options: {} }, 'stream_options', /only with stream/],
    [{ prompt: 'a', stream: true, stream_options: { usage: true } }, 'stream_options.usage', /not a field/],
    [{ prompt: 'a', repetition_penalty: 1.1 }, 'repetition_penalty', /only as 1/],
    [{ prompt: 'a', truncate_prompt_tokens: 0 }, 'truncate_prompt_tokens', /at least 1/],
    [{ prompt: 'a', echo: true, suffix: 'b' }, 'echo', /cannot be combined with suffix or rag/],
    [{ prompt: 'a', echo: true, rag: { repo: 'r' } }, 'echo', /cannot be combined with suffix or rag/],
    [{ prompt: 'a', completion_prefix: 'x'.repeat(32_769) }, 'completion_prefix', /<=32768/],
    [{ prompt: 'a', rag: {} }, 'rag.repo', /required/],
    [{ prompt: 'a', rag: { repo: 'r', mode: 'fast' } }, 'rag.mode', /compressed/],
    [{ prompt: 'a', rag: { repo: 'r', k: 1 } }, 'rag.k', /not a field/],
    [{ prompt: 'a', rag: { repo: 'r', file_tokens: 101 } }, 'rag.file_tokens', /<=100/],
    [{ prompt: 'a', rag: { repo: 'r', file_tokens: -1 } }, 'rag.file_tokens', />=0/],
    [{ prompt: ['a', 'b'], rag: { repo: 'r' } }, 'rag', /one prompt/],
    [{ prompt: 'x'.repeat(5000) }, 'prompt', /too long/],
  ];
  test.each(cases)('the refusal of %j names %s', async (body, param, message) => {
    const answer = await gateway.complete(body);
    expect(answer.status).toBe(400);
    expect(answer.error).toMatchObject({
      type: 'invalid_request_error',
      param,
      message: expect.stringMatching(message),
    });
    expect(answer.error!.code).toMatch(/^(invalid_request|context_length_exceeded)$/);
  });

  test('a refusal is short, whichever field is long', async () => {
    const long = 'k'.repeat(50_000);
    for (const body of [
      { model: long },
      { session: long },
      { cache_salt: long },
      { [long]: 1 },
      { rag: { repo: long } },
    ]) {
      const { status, error } = await gateway.complete({ prompt: 'a', ...body });
      expect([status, error!.message.length < 1_000]).toEqual([400, true]);
    }
  });

  test('a refusal lists every problem at once', async () => {
    const { error } = await gateway.complete({ prompt: 'a', tempreature: 0, top_p: 7 });
    expect(error!.message).toMatch(/tempreature.*top_p|top_p.*tempreature/);
  });

  test('a refused body never reaches a worker', async () => {
    const { complete, workers } = await fakeGateway({ token: () => 70 });
    await complete({ prompt: 'a', nonsense: 1 });
    expect(workers.prefills).toEqual([]);
  });
});

describe('a body that is taken', () => {
  const parse = (body: object) => completionBody.parse(body);

  test('a body gets OpenAI’s defaults', () => {
    expect(parse({ prompt: 'a' })).toMatchObject({
      prompts: ['a'],
      maxTokens: 16,
      n: 1,
      bestOf: 1,
      stop: [],
      seed: undefined,
      logprobs: undefined,
      echo: false,
      stream: false,
      rag: undefined,
      sampling: { temperature: 1, topP: 1, topK: 0, minP: 0, logprobs: -1, minTokens: 0 },
    });
    expect(parse({ prompt: 'a', rag: { repo: 'r' } }).rag).toMatchObject({
      mode: 'compressed',
      topK: 10,
      maxTextTokens: 512,
    });
  });

  test('a body may hold null for any field, and fields that have no effect here', () => {
    const nulls = Object.fromEntries(
      ['suffix', 'stop', 'seed', 'logprobs', 'n', 'best_of', 'stream_options', 'logit_bias', 'rag'].map((k) => [
        k,
        null,
      ]),
    );
    expect(parse({ prompt: 'a', ...nulls })).toEqual(parse({ prompt: 'a' }));
    const harmless = { user: 'me', request_id: 'x', repetition_penalty: 1 };
    expect(parse({ prompt: 'a', ...harmless })).toEqual(parse({ prompt: 'a' }));
  });

  test('every field that a body sets is kept', () => {
    const ids = fc.array(fc.nat(4095), { minLength: 1, maxLength: 5 });
    const many = <T>(each: fc.Arbitrary<T>) => fc.array(each, { minLength: 1, maxLength: 4 });
    const body = fc.record({
      prompt: fc.oneof(fc.string(), ids, many(fc.string()), many(ids)),
      suffix: fc.option(fc.string(), { nil: undefined }),
      max_tokens: fc.integer({ min: 1, max: 9999 }),
      n: fc.integer({ min: 1, max: 8 }),
      temperature: fc.float({ min: 0, max: 2, noNaN: true }),
      top_k: fc.integer({ min: -1, max: 50 }),
      seed: fc.option(fc.maxSafeInteger(), { nil: undefined }),
      stop: fc.oneof(fc.string({ minLength: 1 }), fc.array(fc.string({ minLength: 1 }), { maxLength: 16 })),
      logit_bias: fc.dictionary(fc.nat(4095).map(String), fc.integer({ min: -100, max: 100 })),
      stream: fc.boolean(),
    });
    fc.assert(
      fc.property(body, (body) => {
        const request: CompletionRequest = parse(JSON.parse(JSON.stringify(body)));
        const list =
          typeof body.prompt === 'string' || typeof body.prompt[0] === 'number' ? [body.prompt] : body.prompt;
        expect(request.prompts).toEqual(list);
        expect(request).toMatchObject({ suffix: body.suffix, maxTokens: body.max_tokens, seed: body.seed });
        expect(request.stop).toEqual([body.stop].flat());
        expect(request.sampling.topK).toBe(Math.max(0, body.top_k));
        expect(Object.fromEntries(request.sampling.logitBias)).toEqual(body.logit_bias);
      }),
    );
  });

  test('any JSON is either parsed or refused with a message', () => {
    fc.assert(
      fc.property(fc.jsonValue(), (body) => {
        const result = completionBody.safeParse(body);
        if (!result.success) expect(validationError(result.error).message).toMatch(/\S+: \S+/);
      }),
    );
  });

  test('the sampling of a body is passed on to the workers', async () => {
    const { complete, workers } = await fakeGateway({ token: () => 70 });
    await complete({
      prompt: 'a',
      max_tokens: 2,
      temperature: 0.3,
      top_p: 0.9,
      top_k: 7,
      min_p: 0.1,
      seed: 11,
      logprobs: 3,
      frequency_penalty: 0.5,
      presence_penalty: -0.5,
      logit_bias: { 5: -100 },
      stop_token_ids: [9],
      ignore_eos: true,
      min_tokens: 1,
    });
    const sampling = {
      temperature: 0.3,
      topP: 0.9,
      topK: 7,
      minP: 0.1,
      seed: 11,
      logprobs: 3,
      frequencyPenalty: 0.5,
      presencePenalty: -0.5,
      logitBias: { 5: -100 },
      stopTokenIds: [9],
      minTokens: 1,
      priorOutputIds: [],
    };
    expect(workers.prefills[0]!.choices).toEqual([sampling]);
    expect(workers.decodes[0]!.sampling).toEqual(sampling);
  });
});
