/**
 * Whole systems with workers on the tests' software GPU: every path gives the tokens of the CPU. Of two workers one
 * computes on the GPU and the other on the CPU, both ways round. In worker-killed.test.ts all are on GPUs.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { streamCompletion } from '../../services/client.ts';
import type { SystemOptions } from '../../services/supervisor.ts';
import { PlainModel, startTestSystem, type TestSystem } from '../support/system.ts';
import { COMPILING_MS, DEVICE_MODEL, vulkanEnvironment } from '../support/vulkan.ts';

const CHUNK = 64;

const before = { ...process.env };
beforeAll(async () => {
  Object.assign(process.env, await vulkanEnvironment()); // the services inherit it
}, COMPILING_MS);
afterAll(() => {
  process.env = before;
});

const tokens = (count: number, seed = 1) => Array.from({ length: count }, (_, i) => ((i + 1) * 7919 * seed) % 500);
const GPU = { provider: 'webgpu' };
const CPU = { provider: 'cpu' };

const SYSTEMS: [string, Partial<SystemOptions>][] = [
  ['prompts on the GPU, steps on the CPU', { prefillOnly: GPU, decodeOnly: CPU }],
  ['prompts on the CPU, steps on the GPU', { prefillOnly: CPU, decodeOnly: GPU }],
  ['one worker for both on the GPU', { mode: 'colocated', colocatedOnly: GPU }],
];

describe.each(SYSTEMS)('%s', (_, { prefillOnly, ...options }) => {
  let system: TestSystem;
  let plain: PlainModel;

  beforeAll(async () => {
    const patient = { targetTtftMs: COMPILING_MS };
    const chunks = { prefillChunkTokens: CHUNK };
    const change = {
      ...options,
      gateway: patient,
      ...(prefillOnly && { prefillOnly: { ...prefillOnly, ...chunks } }),
      ...(options.colocatedOnly && { colocatedOnly: { ...options.colocatedOnly, ...chunks, sharedChunkTokens: 32 } }),
    };
    system = await startTestSystem(DEVICE_MODEL, { slots: 3, capacity: 512 }, change);
    plain = await PlainModel.load(system.bundle);
  }, COMPILING_MS);
  afterAll(async () => {
    plain?.dispose();
    await system?.close();
  });

  const complete = async (prompt: number[], max_tokens: number, signal = AbortSignal.timeout(COMPILING_MS)) => {
    const body = { prompt, max_tokens, temperature: 0, ignore_eos: true, return_token_ids: true };
    return (await streamCompletion(system.url, body, signal)).tokenIds;
  };

  test('300 tokens and 24 more are those of the CPU', { timeout: COMPILING_MS }, async () => {
    const expected = await plain.greedy(tokens(300), 25);
    expect(new Set(expected).size).toBeGreaterThan(3);
    expect(await complete(tokens(300), 25)).toEqual(expected);
  });

  test('prompts that come together, begin alike or are given up leave the others right', {
    timeout: COMPILING_MS,
  }, async () => {
    const long = tokens(150, 3);
    const prompts = [long, tokens(9, 4), [...long.slice(0, 100), 7, 8, 9], tokens(33, 5), long];
    const hangUp = new AbortController();
    const givenUp = complete(tokens(200, 6), 20, hangUp.signal).catch((error: Error) => error.message);
    const outputs = Promise.all(prompts.map((prompt, i) => complete(prompt, 4 + i)));
    hangUp.abort(new Error('hung up'));
    expect(await givenUp).toMatch(/hung up|abort/);
    for (const [i, output] of (await outputs).entries()) {
      expect(output, `prompt ${i}`).toEqual(await plain.greedy(prompts[i]!, 4 + i));
    }
    expect(await complete(tokens(200, 6), 5)).toEqual(await plain.greedy(tokens(200, 6), 5));
  });

  test('each of several choices goes on from its own copy', { timeout: COMPILING_MS }, async () => {
    const response = await fetch(`${system.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({
        prompt: tokens(70, 8),
        n: 3,
        max_tokens: 6,
        temperature: 0,
        ignore_eos: true,
        return_token_ids: true,
      }),
      signal: AbortSignal.timeout(COMPILING_MS),
    });
    const { choices } = (await response.json()) as { choices: { token_ids: number[] }[] };
    const expected = await plain.greedy(tokens(70, 8), 6);
    expect(choices.map(({ token_ids }) => token_ids)).toEqual([expected, expected, expected]);
  });
});
