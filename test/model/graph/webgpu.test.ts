/**
 * The decoder graph on a GPU (WebGPU over a software Vulkan device): every node runs there, and each precision gives
 * what it gives on the CPU.
 */
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Device, openDevice } from '../../../services/lib/engine/device.ts';
import { OrtSession } from '../../../services/lib/engine/ort.ts';
import { floatsOf, openBundle } from '../../../services/lib/model/bundle/bundle.ts';
import type { Precision } from '../../../services/lib/model/bundle/choices.ts';
import { comparePosition } from '../../../services/lib/model/bundle/divergence.ts';
import { exportBundle } from '../../../services/lib/model/bundle/export-bundle.ts';
import { DecoderRun, temporaryFolder } from '../../support/models.ts';
import { COMPILING_MS, DEVICE_MODEL, useVulkan } from '../../support/vulkan.ts';

const parent = await temporaryFolder();
let gpu: Device;
beforeAll(async () => {
  await useVulkan();
  gpu = await openDevice({ provider: 'webgpu' });
});
afterAll(() => gpu?.dispose());

const PROMPT_TOKENS = 48;
const SOFT = { positions: [3, 4, 40], vectors: Float32Array.from({ length: 3 * 64 }, (_, i) => Math.sin(i) / 20) };

/** Logits of a prompt with soft tokens, then of a step: [PROMPT_TOKENS + 1, vocab]. */
async function logitsOf(to: string, ids: readonly number[], device?: Device): Promise<Float32Array> {
  const { manifest, llm } = await openBundle(to);
  const session = await OrtSession.load(llm, { device, whole: device !== undefined, threads: 2 });
  try {
    const run = new DecoderRun(session, manifest.llm.spec, 64, floatsOf(manifest));
    const parts = [await run.step({ ids: ids.slice(0, -1), soft: SOFT }), await run.step({ ids: ids.slice(-1) })];
    return Float32Array.from(parts.flatMap((part) => Array.from(part)));
  } finally {
    session.dispose();
  }
}

// Bounds of the mean KL in nats. Measured were 4e-13 in fp32, 2e-5 in fp16, and 4e-4 to 5e-4 in the others: the CPU
// rounds the activations of quantised weights to 8 bits, and the GPU does not.
test.each<[Precision, number]>([
  ['fp32', 1e-9],
  ['fp16', 2e-4],
  ['int8', 2e-3],
  ['int8-fp16', 2e-3],
  ['int4', 2e-3],
  ['mixed', 2e-3], // its kernels are those of int8 and of int4
  ['int4-fp16', 2e-3],
])(
  'a GPU computes every node of %s, and what the CPU computes',
  async (precision, bound) => {
    const to = join(parent, precision);
    await exportBundle({ llm: DEVICE_MODEL, to, precision });
    const { spec } = (await openBundle(to)).manifest.llm;
    const ids = Array.from({ length: PROMPT_TOKENS + 1 }, (_, i) => (i * 37) % spec.vocab);
    const [expected, found] = [await logitsOf(to, ids), await logitsOf(to, ids, gpu)];
    let kl = 0;
    let agreed = 0;
    for (let at = 0; at < expected.length; at += spec.vocab) {
      const position = comparePosition(expected.subarray(at, at + spec.vocab), found.subarray(at, at + spec.vocab));
      kl += position.kl / ids.length;
      if (position.sameTop) agreed++;
    }
    expect(kl).toBeLessThan(bound);
    expect(agreed).toBeGreaterThanOrEqual(ids.length - 2); // others are as likely within the rounding
  },
  COMPILING_MS,
);
