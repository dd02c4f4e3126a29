/** A GPU on which ONNX Runtime computes wrong: the software one with its own vendor. It must never serve. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { loadEngine } from '../../services/lib/engine/load.ts';
import { ENGINE_SETTINGS } from '../../services/lib/engine/settings.ts';
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

test('a bundle is not served by a GPU whose kernels for long runs are wrong', async () => {
  const to = join(dir, 'bundle');
  await exportBundle({ llm: DEVICE_MODEL, to, precision: 'fp32' });
  const log = createLogger('test', 'silent');
  const flags = { model: to, provider: 'webgpu', slots: '1', capacity: '64', threads: '2', prepacked: 'off' };
  const loading = loadEngine(loadConfig(ENGINE_SETTINGS, flags, {}), 'decode', log, new FileGuard(log));
  await expect(loading).rejects.toMatchObject({
    code: 'provider_unavailable',
    message: expect.stringMatching(
      /WebGPU on llvmpipe .* computes wrong: .*48 tokens and a step have a KL divergence of [1-9]\.\de-[1-5] from the CPU's.*--provider cpu/,
    ),
  });
});
