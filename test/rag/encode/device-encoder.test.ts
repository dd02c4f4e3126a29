/** The encoder of an index on a GPU: the tests' software GPU, which the settings must name. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Bundle, openBundle } from '../../../services/lib/model/bundle/bundle.ts';
import { openContextEncoder } from '../../../services/lib/rag/encode/device-encoder.ts';
import { loadContextEncoder } from '../../../services/lib/rag/encode/encode.ts';
import { largestDifference } from '../../support/models.ts';
import { smallestBundle } from '../../support/smallest-bundle.ts';
import { useVulkan } from '../../support/vulkan.ts';

const COMPILING_MS = 240_000;
const CONFIG = { provider: 'auto', providerLibrary: '', deviceId: 0, threads: 1 } as const;
const LOG = { warn: () => {} };
/** In one batch, and some of more than 32 tokens. */
const TEXTS = [1, 2, 9, 14].map((lines) => ({
  path: 'a.py',
  text: Array.from({ length: lines }, (_, i) => `value_${i * lines} = compute(${i}, "${lines}")\n`).join(''),
}));

let dir: string;
let bundle: Bundle;
beforeAll(async () => {
  await useVulkan();
  dir = await mkdtemp(join(tmpdir(), 'llavacode-device-encoder-'));
  // It computes all that an encoder computes: the embedding of a chunk, and the windows of its soft tokens.
  bundle = await openBundle(await smallestBundle(dir, { softPerChunk: 4 }));
}, COMPILING_MS);
afterAll(() => rm(dir, { recursive: true, force: true }));

test(
  'vectors and embeddings that a GPU computes are the CPU’s to within 1e-4',
  async () => {
    const onCpu = await loadContextEncoder(bundle, { threads: 1, retriever: 'dense' });
    const onGpu = await openContextEncoder(bundle, { ...CONFIG, provider: 'webgpu', retriever: 'dense' }, LOG);
    try {
      expect(onGpu.device).toEqual({
        kind: 'webgpu',
        name: expect.stringMatching(/^WebGPU on llvmpipe /),
        reason: '--provider webgpu',
      });
      expect(onGpu.fingerprint).toBe(onCpu.fingerprint);
      const [expected, found] = [await onCpu.encode(TEXTS), await onGpu.encode(TEXTS)];
      expect(expected[0]!.vector).toHaveLength(4 * bundle.manifest.llm.spec.hidden);
      expect(largestDifference(expected[0]!.vector, expected[1]!.vector)).toBeGreaterThan(0.01);
      for (const [i, { vector, embedding }] of expected.entries()) {
        expect(largestDifference(found[i]!.vector, vector)).toBeLessThan(1e-4);
        expect(largestDifference(found[i]!.embedding!, embedding!)).toBeLessThan(1e-4);
      }
    } finally {
      onCpu.dispose();
      await onGpu.dispose();
    }
    await expect(onGpu.encode(TEXTS)).rejects.toMatchObject({ code: 'draining' });
  },
  COMPILING_MS,
);

test(
  'the encoder of a bundle in int4-fp16 computes in 32 bits with weights of 8 bits, on a GPU within 1 % of the CPU',
  async () => {
    const half = await openBundle(await smallestBundle(dir, { precision: 'int4-fp16' }));
    const onCpu = await loadContextEncoder(half, { threads: 1, retriever: 'dense' });
    const onGpu = await openContextEncoder(half, { ...CONFIG, provider: 'webgpu', retriever: 'dense' }, LOG);
    try {
      expect(onGpu.device.kind).toBe('webgpu');
      const [expected, found] = [await onCpu.encode(TEXTS), await onGpu.encode(TEXTS)];
      for (const [i, { vector, embedding }] of expected.entries()) {
        expect(vector).toBeInstanceOf(Float32Array);
        expect(largestDifference(found[i]!.vector, vector)).toBeLessThan(0.01 * Math.hypot(...vector));
        expect(largestDifference(found[i]!.embedding!, embedding!)).toBeLessThan(0.01 * Math.hypot(...embedding!));
      }
    } finally {
      onCpu.dispose();
      await onGpu.dispose();
    }
  },
  COMPILING_MS,
);

test('an encoder is refused on CUDA, with the reason and what to use instead', async () => {
  await expect(openContextEncoder(bundle, { ...CONFIG, provider: 'cuda' }, LOG)).rejects.toMatchObject({
    code: 'config_invalid',
    message: expect.stringMatching(/encoders compute in 32 bits.*16 bits only: use --provider webgpu or cpu/),
  });
});

test('nothing is opened on a GPU for a bundle without an encoder', async () => {
  const bare = { ...bundle, context: undefined };
  const textOnly = await openContextEncoder(bare, { ...CONFIG, provider: 'cuda' }, LOG);
  expect(textOnly.device.kind).toBe('cpu');
  expect(textOnly.hidden).toBe(0);
  await textOnly.dispose();
});
