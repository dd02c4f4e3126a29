/** A GPU on which ONNX Runtime computes wrong: the software one with its own vendor. It must never serve. */
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { loadEngine } from '../../services/lib/engine/load.ts';
import { ENGINE_SETTINGS } from '../../services/lib/engine/settings.ts';
import type { Precision } from '../../services/lib/model/bundle/choices.ts';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { FileGuard } from '../../services/lib/model/bundle/integrity.ts';
import { createLogger } from '../../services/lib/process/log.ts';
import { loadConfig } from '../../services/settings.ts';
import { COMPILING_MS, DEVICE_MODEL, useVulkan } from '../support/vulkan.ts';

let dir: string;
vi.setConfig({ testTimeout: COMPILING_MS });
beforeAll(async () => {
  await useVulkan('wrong');
  dir = await mkdtemp(join(tmpdir(), 'llavacode-wrong-'));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

const fromCpu = (limit: string) =>
  `48 tokens and a step have a KL divergence of \\d\\.\\de-[1-5] from the CPU's, and at most ${limit} is right`;
test.each<[Precision, string, RegExp]>([
  ['fp32', '1', new RegExp(fromCpu('1\\.0e-6'))],
  ['fp16', '1', new RegExp(fromCpu('5\\.0e-4'))],
  ['int4-fp16', '1', new RegExp(fromCpu('1\\.5e-2'))],
  // As a model whose distance from the CPU passes, because the CPU rounds activations: shorter runs show the fault.
  [
    'int4-fp16',
    '4',
    /48 tokens in one run has a KL divergence of \d\.\de-[1-3] from the same in two, and at most 8\.0e-3/,
  ],
])(
  'a bundle in %s, with --check-tolerance %s, is not served by a GPU whose kernels for long runs are wrong',
  async (precision, checkTolerance, figures) => {
    const to = join(dir, precision);
    if (!existsSync(to)) await exportBundle({ llm: DEVICE_MODEL, to, precision });
    const log = createLogger('test', 'silent');
    const sizes = { slots: '1', capacity: '64', threads: '2', prepacked: 'off' };
    const flags = { model: to, provider: 'webgpu', checkTolerance, ...sizes };
    const loading = loadEngine(loadConfig(ENGINE_SETTINGS, flags, {}), 'decode', log, new FileGuard(log));
    await expect(loading).rejects.toThrow(figures);
    await expect(loading).rejects.toMatchObject({
      code: 'provider_unavailable',
      message: expect.stringMatching(/^WebGPU on llvmpipe .* computes wrong: .*use --provider cpu/),
    });
  },
);
