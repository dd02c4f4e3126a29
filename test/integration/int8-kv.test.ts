/**
 * Whole systems whose KV lies in int8, as real processes: greedy output is that of the model by itself,
 * however workers share the work, and a hand-over carries a byte for each value.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { streamCompletion } from '../../services/client.ts';
import { kvLayoutOf } from '../../services/lib/engine/kv-layout.ts';
import { positionBytes } from '../../services/lib/kv/layout.ts';
import { PlainModel, startTestSystem, type TestSystem, TINY_CODER } from '../support/system.ts';

const CHUNK = 32;

/** Some tokens of a vocabulary, always the same ones. */
const tokens = (count: number, seed = 1) => Array.from({ length: count }, (_, i) => ((i + 1) * 7919 * seed) % 500);

describe.each(['disaggregated', 'colocated', 'hybrid'] as const)('%s', (mode) => {
  let system: TestSystem;
  let plain: PlainModel;

  beforeAll(async () => {
    const flags = { prefillOnly: { prefillChunkTokens: CHUNK }, gateway: { localPrefillTokens: 60 } };
    system = await startTestSystem(TINY_CODER, { slots: 3, capacity: 512 }, { mode, kv: 'int8', ...flags });
    plain = await PlainModel.load(system.bundle, 512);
  });
  afterAll(async () => {
    plain?.dispose();
    await system?.close();
  });

  const complete = async (prompt: number[], maxTokens: number) => {
    const body = { prompt, max_tokens: maxTokens, temperature: 0, ignore_eos: true, return_token_ids: true };
    return (await streamCompletion(system.url, body, AbortSignal.timeout(30_000))).tokenIds;
  };

  test.each([1, CHUNK + 1, 5 * CHUNK + 7])('a prompt of %i tokens has the output of the plain path', async (length) => {
    const expected = await plain.greedy(tokens(length), 16);
    expect(await complete(tokens(length), 16)).toEqual(expected);
    // Now the beginning is there already.
    expect(await complete(tokens(length), 16)).toEqual(expected);
  });

  test('prompts that come together have the output that they have alone', async () => {
    const prompts = Array.from({ length: 6 }, (_, i) => tokens(9 + 31 * i, i + 1));
    const together = await Promise.all(prompts.map((prompt) => complete(prompt, 12)));
    for (const [i, prompt] of prompts.entries()) expect(together[i]).toEqual(await plain.greedy(prompt, 12));
  });

  test('an output goes on the same when it has become a prompt', async () => {
    const output = await complete(tokens(70), 24);
    expect(await complete([...tokens(70), ...output.slice(0, 11)], 13)).toEqual(output.slice(11));
  });
});

test('a byte is carried for each value, and workers say what they hold', async () => {
  const system = await startTestSystem(TINY_CODER, { slots: 2, capacity: 256 }, { kv: 'int8' });
  try {
    const decode = system.processes.find(({ name }) => name.startsWith('decode'))!;
    const metricsText = async () => (await fetch(`http://${decode.metricsAddress}/metrics`)).text();
    const movedBytes = (text: string) =>
      Number(/^llavacode:kv_handoff_bytes_total(?:\{[^}]*\})? (\d+)/m.exec(text)?.[1]);
    const before = movedBytes(await metricsText());
    const body = { prompt: tokens(50), max_tokens: 4, temperature: 0 };
    await streamCompletion(system.url, body, AbortSignal.timeout(30_000));
    const text = await metricsText();
    const layout = kvLayoutOf(system.bundle.manifest);
    expect(positionBytes(layout)).toBe(layout.layers * 2 * layout.kvHeads * layout.headDim);
    expect(movedBytes(text) - before).toBe(50 * positionBytes(layout));
    expect(text).toContain('cache_dtype="int8-channel"');
  } finally {
    await system.close();
  }
});
