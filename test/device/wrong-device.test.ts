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
import { COMPILING_MS, useVulkan } from '../support/vulkan.ts';

let dir: string;
vi.setConfig({ testTimeout: COMPILING_MS });
beforeAll(async () => {
  await useVulkan('wrong');
  dir = await mkdtemp(join(tmpdir(), 'llavacode-wrong-'));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

test.each([
  ['int4', /48 tokens in one run has a KL divergence of [1-9]\.\de-3 from the same in two/],
  ['fp16', /KL divergence of [1-9]\.\de-3 from the CPU's, and at most 5\.0e-4 is right for fp16/],
] as const)('a bundle of precision %s is not served by a GPU that computes wrong', async (precision, figures) => {
  const to = join(dir, precision);
  await exportBundle({ llm: join(import.meta.dirname, '../../models/tiny-coder'), to, precision });
  const log = createLogger('test', 'silent');
  const flags = { model: to, provider: 'webgpu', slots: '1', capacity: '64', threads: '2', prepacked: 'off' };
  const loading = loadEngine(loadConfig(ENGINE_SETTINGS, flags, {}), 'decode', log, new FileGuard(log));
  await expect(loading).rejects.toMatchObject({
    code: 'provider_unavailable',
    message: expect.stringMatching(new RegExp(`WebGPU computes wrong: .*${figures.source}.*--provider cpu`)),
  });
});
