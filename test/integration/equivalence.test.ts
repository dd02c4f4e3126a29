/**
 * The oracle of the whole system: on a model of 32-bit floats greedy output is the same, token for token, however it is
 * computed: in one process or handed from one to another, in chunks or whole, batched or alone, streamed or not, after
 * a cancelled try, from the beginning of an earlier prompt or from none, with soft tokens or without; and where there
 * is a PyTorch reference, the same as that.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { streamCompletion } from '../../services/client.ts';
import { Checkpoint } from '../../services/lib/model/checkpoint/checkpoint.ts';
import { GREEDY } from '../../services/lib/request/next-token.ts';
import { NO_SOFT_TOKENS, type SoftTokens } from '../../services/lib/request/token-prompt.ts';
import { connectDecode, connectPrefill } from '../../services/lib/rpc/contract.ts';
import { samplingMessage, softTokensMessage } from '../../services/lib/rpc/messages.ts';
import { golden, memberOf, PlainModel, startTestSystem, type TestSystem, TINY_CODER } from '../support/system.ts';

const CHUNK = 32;
const MODES = ['disaggregated', 'colocated', 'hybrid'] as const;

/** Some tokens of a vocabulary, always the same ones. */
const tokens = (count: number, seed = 1) => Array.from({ length: count }, (_, i) => ((i + 1) * 7919 * seed) % 500);

/** A prompt through both workers by gRPC, as the gateway sends it. */
async function overRpc(
  system: TestSystem,
  ids: number[],
  maxTokens: number,
  soft: SoftTokens,
): Promise<{ tokens: number[]; cachedTokens: number }> {
  const address = (role: string) =>
    system.processes.find(({ name }) => name.startsWith(role) || name.startsWith('colocated'))!.address;
  const security = await memberOf(system);
  const [prefill, decode] = [connectPrefill(address('prefill'), security), connectDecode(address('decode'), security)];
  const signal = AbortSignal.timeout(30_000);
  const sampling = samplingMessage(GREEDY);
  const { fingerprint } = system.bundle.manifest;
  const first: number[] = [];
  let cachedTokens = 0;
  const prompt = { requestId: 'test', fingerprint, tokenIds: ids, soft: softTokensMessage(soft), promptLogprobs: -1 };
  // On another connection: its steps may all be here before the first token is.
  let decoding: Promise<number[]> | undefined;
  try {
    for await (const event of prefill.prefill({ ...prompt, choices: [sampling], readers: 1 }, signal)) {
      const { kv } = event.accepted ?? {};
      if (kv) {
        decoding = (async () => {
          const rest: number[] = [];
          for await (const { step } of decode.decode(
            { requestId: 'test', kv, choice: 0, sampling, maxTokens },
            signal,
          )) {
            rest.push(...(step?.tokens ?? []).map((token) => token.id));
          }
          return rest;
        })();
      }
      if (event.first) {
        first.push(event.first.tokens[0]!.id);
        ({ cachedTokens } = event.first);
      }
    }
    return { tokens: [...first, ...((await decoding) ?? [])], cachedTokens };
  } finally {
    prefill.close();
    decode.close();
  }
}

describe.each(MODES)('%s', (mode) => {
  describe('tiny-coder', () => {
    let system: TestSystem;
    let plain: PlainModel;

    beforeAll(async () => {
      const flags = { prefillOnly: { prefillChunkTokens: CHUNK } };
      // In a hybrid prompts of these tests go both ways.
      const gateway = { localPrefillTokens: 60 };
      system = await startTestSystem(TINY_CODER, { slots: 3, capacity: 1024 }, { mode, gateway, ...flags });
      plain = await PlainModel.load(system.bundle);
    });
    afterAll(async () => {
      plain?.dispose();
      await system?.close();
    });

    const complete = async (prompt: number[], maxTokens: number, signal = AbortSignal.timeout(30_000)) => {
      const body = { prompt, max_tokens: maxTokens, temperature: 0, ignore_eos: true, return_token_ids: true };
      return (await streamCompletion(system.url, body, signal)).tokenIds;
    };

    test.each([1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5 * CHUNK + 7])(
      'a prompt of %i tokens, handed over chunk by chunk, gives the output of the plain path',
      async (length) => {
        expect(await complete(tokens(length), 16)).toEqual(await plain.greedy(tokens(length), 16));
      },
    );

    test('a completion of one token gives the output of the plain path', async () => {
      expect(await complete(tokens(40), 1)).toEqual(await plain.greedy(tokens(40), 1));
    });

    test('more prompts at once than there are slots each give the output that they give alone', async () => {
      const prompts = Array.from({ length: 8 }, (_, i) => tokens(5 + 23 * i, i + 1));
      const together = await Promise.all(prompts.map((prompt, i) => complete(prompt, 10 + 5 * i)));
      for (const [i, prompt] of prompts.entries()) {
        expect(together[i], `prompt ${i}`).toEqual(await plain.greedy(prompt, 10 + 5 * i));
      }
    });

    test('of more choices than slots each is what a request of its own with its seed gives, whole and streamed', async () => {
      const [choices, slots] = [3 * 3 + 1, 3];
      const body = { prompt: tokens(40), max_tokens: 12, temperature: 1, ignore_eos: true, return_token_ids: true };
      const ask = async (change: object) => {
        const response = await fetch(`${system.url}/v1/completions`, {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: JSON.stringify({ ...body, ...change }),
        });
        return (await response.json()) as { choices: { token_ids: number[] }[]; usage: { prompt_tokens: number } };
      };
      const alone: number[][] = [];
      // services/gateway/completion/sampling.ts: the seeds of a request's choices.
      for (let i = 0; i < choices; i++) alone.push((await ask({ seed: 7 + i * 0x9e3779b1 })).choices[0]!.token_ids);
      expect(new Set(alone.map(String)).size).toBeGreaterThan(slots);
      const together = await ask({ seed: 7, n: choices });
      expect(together.choices.map(({ token_ids }) => token_ids)).toEqual(alone);
      expect(together.usage.prompt_tokens).toBe(40);
      const client = new OpenAI({ baseURL: `${system.url}/v1`, apiKey: 'none', maxRetries: 0 });
      const streamed = Array.from({ length: choices }, (): number[] => []);
      const asked = { ...body, model: 'tiny-coder', seed: 7, n: choices, stream: true } as const;
      for await (const { choices: deltas } of await client.completions.create(asked)) {
        for (const delta of deltas) streamed[delta.index]!.push(...(delta as { token_ids?: number[] }).token_ids!);
      }
      expect(streamed).toEqual(alone);
    });

    test('a whole answer has the text and tokens of a streamed one', async () => {
      const body = { prompt: tokens(50), max_tokens: 20, temperature: 0, ignore_eos: true, return_token_ids: true };
      const response = await fetch(`${system.url}/v1/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify(body),
      });
      const answer = (await response.json()) as { choices: { text: string; token_ids: number[] }[] };
      const streamed = await streamCompletion(system.url, body, AbortSignal.timeout(30_000));
      expect(answer.choices[0]).toMatchObject({ text: streamed.text, token_ids: streamed.tokenIds });
      expect(streamed.tokenIds).toEqual(await plain.greedy(body.prompt, 20));
    });

    test('the official client of OpenAI gets the same output, whole and in a stream; metrics carry the model’s name', async () => {
      const client = new OpenAI({ baseURL: `${system.url}/v1`, apiKey: 'none', maxRetries: 0 });
      const model = (await client.models.list()).data[0]!.id;
      const body = { model, prompt: tokens(50), max_tokens: 20, temperature: 0 };
      const greedy = { ...body, ignore_eos: true, return_token_ids: true };
      const { text, tokenIds } = await streamCompletion(system.url, greedy, AbortSignal.timeout(30_000));
      expect(tokenIds).toEqual(await plain.greedy(body.prompt, 20));
      const { choices, usage } = await client.completions.create(greedy);
      expect(choices[0]).toMatchObject({ text, finish_reason: 'length' });
      expect(usage).toMatchObject({ prompt_tokens: 50, completion_tokens: 20 });
      let streamed = '';
      for await (const chunk of await client.completions.create({ ...greedy, stream: true })) {
        streamed += chunk.choices[0]?.text ?? '';
      }
      expect(streamed).toBe(text);
      const metrics = await (await fetch(`${system.url}/metrics`)).text();
      for (const name of ['time_to_first_token', 'request_time_per_output_token', 'e2e_request_latency']) {
        expect(metrics).toContain(`vllm:${name}_seconds_count{service="gateway",model_name="${model}"}`);
      }
    });

    test('n choices of one greedy prompt, more than there are slots, all give the output of the plain path', async () => {
      const body = {
        prompt: tokens(45),
        max_tokens: 12,
        temperature: 0,
        ignore_eos: true,
        return_token_ids: true,
        n: 5,
      };
      const response = await fetch(`${system.url}/v1/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify(body),
      });
      const { choices } = (await response.json()) as { choices: { token_ids: number[] }[] };
      const expected = await plain.greedy(tokens(45), 12);
      expect(choices.map((choice) => choice.token_ids)).toEqual(Array(5).fill(expected));
    });

    test('a completion that was cancelled does not change the next one of the same prompt', async () => {
      const prompt = tokens(300);
      for (const afterChunks of [0, 1, 3]) {
        const controller = new AbortController();
        let seen = 0;
        const body = { prompt, max_tokens: 500, temperature: 0, ignore_eos: true, stream: true };
        const response = fetch(`${system.url}/v1/completions`, {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: JSON.stringify(body),
          signal: controller.signal,
        });
        if (afterChunks === 0) controller.abort();
        const reading = response.then(async ({ body: stream }) => {
          for await (const _ of stream!) if (++seen >= afterChunks) controller.abort();
        });
        await expect(reading).rejects.toThrow();
        expect(await complete(prompt, 16)).toEqual(await plain.greedy(prompt, 16));
      }
    });

    if (mode === 'hybrid')
      test('a hybrid computes some prompts where they are decoded, and others on a prefill worker', async () => {
        const metrics = await (await fetch(`${system.url}/metrics`)).text();
        for (const where of ['local', 'remote']) {
          expect(metrics).toMatch(new RegExp(`^llavacode:prefill_placed_total{where="${where}",.*} [1-9]`, 'm'));
        }
      });

    // In a hybrid the next one may go to another worker than the one before.
    if (mode !== 'hybrid')
      describe('a prompt that begins like an earlier one is not computed from the start, and is as the plain path', () => {
        const ask = async (prompt: number[], maxTokens: number) => {
          const body = { prompt, max_tokens: maxTokens, temperature: 0, ignore_eos: true, return_token_ids: true };
          const response = await fetch(`${system.url}/v1/completions`, {
            method: 'POST',
            headers: { 'content-type': 'application/json' },
            body: JSON.stringify(body),
          });
          const { choices, usage } = (await response.json()) as {
            choices: { token_ids: number[] }[];
            usage: { prompt_tokens: number; prompt_tokens_details: { cached_tokens: number } };
          };
          expect(usage.prompt_tokens).toBe(prompt.length);
          return { tokenIds: choices[0]?.token_ids, cachedTokens: usage.prompt_tokens_details.cached_tokens };
        };
        const cachedOf = async (prompt: number[]) => {
          const { tokenIds, cachedTokens } = await ask(prompt, 16);
          expect(tokenIds).toEqual(await plain.greedy(prompt, 16));
          return cachedTokens;
        };

        test('each keystroke, and each backspace, reuses the beginning that it shares with an earlier prompt', async () => {
          const prompt = tokens(200, 13);
          expect(await cachedOf(prompt)).toBe(0);
          expect(await cachedOf([...prompt, 7])).toBe(192);
          expect(await cachedOf([...prompt, 7, 8, 9])).toBe(192);
          expect(await cachedOf(prompt.slice(0, 150))).toBe(144);
          expect(await cachedOf([...prompt.slice(0, 100), ...tokens(100, 17)])).toBe(96);
        });

        test('a prompt that is known up to its last token gives logits that are the same to the last bit', async () => {
          const first = async (prompt: number[]) => {
            const answer = await fetch(`${system.url}/v1/completions`, {
              method: 'POST',
              headers: { 'content-type': 'application/json' },
              body: JSON.stringify({ prompt, max_tokens: 1, temperature: 0, logprobs: 5 }),
            });
            const { choices, usage } = (await answer.json()) as {
              choices: { logprobs: { top_logprobs: Record<string, number>[] } }[];
              usage: { prompt_tokens_details: { cached_tokens: number } };
            };
            return { logprobs: choices[0]?.logprobs.top_logprobs, cached: usage.prompt_tokens_details.cached_tokens };
          };
          for (const length of [192, 193]) {
            const prompt = tokens(length, 50 + length);
            const { logprobs, cached } = await first(prompt);
            expect(cached).toBe(0);
            expect(await first(prompt)).toEqual({ logprobs, cached: length - 2 });
          }
        });

        test('several prompts at once reuse the beginning that they share', async () => {
          const beginning = tokens(130, 19);
          await ask(beginning, 1);
          const prompts = [23, 29, 31, 37, 41].map((seed, i) => [...beginning, ...tokens(5 + 9 * i, seed)]);
          const together = await Promise.all(prompts.map((prompt) => ask(prompt, 12)));
          for (const [i, prompt] of prompts.entries()) {
            expect(together[i]).toEqual({ tokenIds: await plain.greedy(prompt, 12), cachedTokens: 128 });
          }
        });

        test('a prompt is reused up to its first soft token that is another one', async () => {
          const { hidden } = system.bundle.manifest.llm.spec;
          const positions = Int32Array.of(0, 1, 2, 70);
          const vectors = Float32Array.from({ length: positions.length * hidden }, (_, i) => Math.cos(i) / 10);
          const changed = (element: number) => vectors.with(element, (vectors[element] as number) + 0.5);
          const ids = tokens(120, 43);
          for (const [soft, cachedTokens] of [
            [{ positions, vectors }, 0],
            [{ positions, vectors }, 112],
            [{ positions, vectors: changed(3 * hidden) }, 64],
            [{ positions, vectors: changed(0) }, 0],
            [NO_SOFT_TOKENS, 0],
          ] as const) {
            const expected = await plain.greedy(ids, 16, soft);
            expect(await overRpc(system, ids, 16, soft)).toEqual({ tokens: expected, cachedTokens });
          }
        });
      });

    test('soft tokens anywhere in the prompt, over chunk borders, give the output of the plain path', async () => {
      const { hidden } = system.bundle.manifest.llm.spec;
      const positions = Int32Array.of(0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 70);
      const vectors = Float32Array.from({ length: positions.length * hidden }, (_, i) => Math.sin(i) / 10);
      const soft = { positions, vectors };
      const expected = await plain.greedy(tokens(90), 16, soft);
      expect((await overRpc(system, tokens(90), 16, soft)).tokens).toEqual(expected);
      expect(expected).not.toEqual(await plain.greedy(tokens(90), 16));
    });
  });

  describe.each(['qwen2-tied', 'qwen2-untied', 'llama'])('%s, a PyTorch golden', (name) => {
    let system: TestSystem;
    let expected: { input_ids: number[]; greedy: number[]; greedy_soft_prefix: number[] };

    beforeAll(async () => {
      system = await startTestSystem(
        golden(name),
        { slots: 2, capacity: 256 },
        {
          mode,
          prefillOnly: { prefillChunkTokens: 7 },
        },
      );
      expected = JSON.parse(await readFile(join(golden(name), 'expected.json'), 'utf8'));
    });
    afterAll(() => system?.close());

    test('the whole system continues a prompt of the golden model as PyTorch does', async () => {
      const count = expected.greedy.length;
      expect((await overRpc(system, expected.input_ids, count, NO_SOFT_TOKENS)).tokens).toEqual(expected.greedy);
      const body = { prompt: expected.input_ids, max_tokens: count, temperature: 0, ignore_eos: true };
      const streamed = await streamCompletion(
        system.url,
        { ...body, return_token_ids: true },
        AbortSignal.timeout(30_000),
      );
      expect(streamed.tokenIds).toEqual(expected.greedy);
    });

    test('the whole system continues ten soft tokens and a prompt of the golden model as PyTorch does', async () => {
      await using outputs = await Checkpoint.open(join(golden(name), 'expected.safetensors'));
      const vectors = await outputs.read('soft_tokens');
      const positions = Int32Array.from({ length: 10 }, (_, i) => i);
      const ids = [...Array.from(positions, () => 0), ...expected.input_ids];
      const count = expected.greedy_soft_prefix.length;
      const { tokens: output } = await overRpc(system, ids, count, { positions, vectors });
      expect(output).toEqual(expected.greedy_soft_prefix);
    });
  });
});
