/**
 * Whole systems that serve `int4-fp16`, the precision of the GPU images, with workers on the tests' software GPU. KV
 * goes from worker to worker over gRPC in 16 bits, also to a worker on the CPU; the other way is tested in 32 bits
 * (system.test.ts) and without processes (sixteen-bits.test.ts). The CPU rounds activations to 8 bits and the GPU does
 * not, so each token must be about as likely as the CPU's likeliest there.
 */
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { streamCompletion } from '../../services/client.ts';
import { kvLayoutOf } from '../../services/lib/engine/kv-layout.ts';
import { positionBytes } from '../../services/lib/kv/layout.ts';
import type { SystemOptions } from '../../services/supervisor.ts';
import { PlainModel, startTestSystem, type TestSystem, TINY_CODER } from '../support/system.ts';
import { COMPILING_MS, vulkanEnvironment } from '../support/vulkan.ts';

vi.setConfig({ testTimeout: COMPILING_MS, hookTimeout: COMPILING_MS });
const CHUNK = 64;
/** Nats by which the devices' logits may part. */
const ROUNDING = 0.5;
const before = { ...process.env };
beforeAll(async () => {
  Object.assign(process.env, await vulkanEnvironment()); // the services inherit it
});
afterAll(() => {
  process.env = before;
});

const tokens = (count: number, seed = 1) => Array.from({ length: count }, (_, i) => ((i + 1) * 7919 * seed) % 500);
const GPU = { provider: 'webgpu' };
const CPU = { provider: 'cpu' };

/** Tokens of a prompt that is shorter than a chunk. */
const SHORT = 40;

const SYSTEMS: [string, Partial<SystemOptions>][] = [
  ['prompts on a GPU, steps on another', { prefillOnly: GPU, decodeOnly: GPU }],
  ['prompts on the GPU, steps on the CPU', { prefillOnly: GPU, decodeOnly: CPU }],
];

describe.each(SYSTEMS)('%s', (_, { prefillOnly, ...options }) => {
  let system: TestSystem;
  let plain: PlainModel;

  beforeAll(async () => {
    const change = {
      ...options,
      precision: 'int4-fp16' as const,
      gateway: { targetTtftMs: COMPILING_MS },
      prefillOnly: { ...prefillOnly, prefillChunkTokens: CHUNK },
    };
    system = await startTestSystem(TINY_CODER, { slots: 3, capacity: 256 }, change);
    plain = await PlainModel.load(system.bundle, 256);
  });
  afterAll(async () => {
    plain?.dispose();
    await system?.close();
  });

  const complete = async (prompt: number[], max_tokens: number) => {
    const body = { prompt, max_tokens, temperature: 0, ignore_eos: true, return_token_ids: true };
    return streamCompletion(system.url, body, AbortSignal.timeout(COMPILING_MS));
  };

  /** Bytes of KV that the worker that decodes has pulled. */
  const moved = async () => {
    const decoder = system.processes.find(({ name }) => name.startsWith('decode'))!;
    const metrics = await (await fetch(`http://${decoder.metricsAddress}/metrics`)).text();
    return Number(/^llavacode:kv_handoff_bytes_total(?:\{[^}]*\})? (\d+)/m.exec(metrics)?.[1] ?? 0);
  };

  test('a prompt, once more, and one that begins like it are answered as the CPU would, and KV travels in 16 bits', async () => {
    const prompt = tokens(150);
    const fork = [...prompt.slice(0, 100), 7, 8, 9, ...tokens(20, 3)];
    const movedBefore = await moved(); // the gateway tries its workers with a prompt of its own
    const short = tokens(SHORT, 5);
    const first = await complete(prompt, 12);
    const again = await complete(prompt, 12);
    const forked = await complete(fork, 12);
    const brief = await complete(short, 6);
    for (const [asked, { tokenIds }] of [
      [prompt, first],
      [prompt, again],
      [fork, forked],
      [short, brief],
    ] as const) {
      expect(Math.max(...(await plain.shortOfLikeliest(asked, tokenIds)))).toBeLessThan(ROUNDING);
    }
    expect(new Set(first.tokenIds).size).toBeGreaterThan(3);
    expect(forked.usage.prompt_tokens_details?.cached_tokens).toBeGreaterThanOrEqual(64);
    const { manifest } = system.bundle;
    const perPosition = positionBytes(kvLayoutOf(manifest));
    const handedOver = 2 * prompt.length + fork.length + short.length;
    expect((await moved()) - movedBefore).toBe(handedOver * perPosition);
  });
});
