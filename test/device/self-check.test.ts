/** Engines on a GPU that computes right, the software one seen as NVIDIA's: they pass the check and answer alike. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { type EngineConfig, type EngineWork, loadEngine, type WorkerEngine } from '../../services/lib/engine/load.ts';
import { gpuVendors } from '../../services/lib/engine/provider.ts';
import { ENGINE_SETTINGS } from '../../services/lib/engine/settings.ts';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { FileGuard } from '../../services/lib/model/bundle/integrity.ts';
import { createLogger } from '../../services/lib/process/log.ts';
import { NO_SOFT_TOKENS } from '../../services/lib/request/token-prompt.ts';
import { loadConfig } from '../../services/settings.ts';
import { COMPILING_MS, DEVICE_MODEL, useVulkan } from '../support/vulkan.ts';

let dir: string;
vi.setConfig({ testTimeout: COMPILING_MS });
const log = createLogger('test', 'silent');

beforeAll(async () => {
  await useVulkan('right');
  dir = await mkdtemp(join(tmpdir(), 'llavacode-check-'));
  await exportBundle({ llm: DEVICE_MODEL, to: join(dir, 'bundle'), precision: 'fp32' });
});
afterAll(() => rm(dir, { recursive: true, force: true }));

async function withEngine<T>(
  asked: Partial<EngineConfig>,
  work: EngineWork,
  use: (engine: WorkerEngine) => Promise<T>,
): Promise<T> {
  const config = loadConfig(
    ENGINE_SETTINGS,
    { model: join(dir, 'bundle'), slots: '2', capacity: '64', threads: '2' },
    {},
  );
  const engine = await loadEngine({ ...config, prepacked: 'off', ...asked }, work, log, new FileGuard(log));
  try {
    return await use(engine);
  } finally {
    await engine.dispose();
  }
}

const ids = Int32Array.from({ length: 40 }, (_, i) => (i * 37) % 500);
const answer = async ({ session }: WorkerEngine) => {
  const logits = await session.chunk({ slot: 1, past: 0, ids, soft: NO_SOFT_TOKENS, logitRows: [39] });
  return logits.indexOf(Math.max(...logits));
};

test.each(['prefill', 'both'] as const)(
  'an engine that is to compute %s passes its check on a GPU and answers like the CPU',
  async (work) => {
    const onGpu = await withEngine({ provider: 'webgpu' }, work, async (engine) => {
      expect(engine.device).toMatchObject({ kind: 'webgpu', reason: '--provider webgpu' });
      expect(engine.check!.kl).toBeGreaterThan(0); // it was compared with something else than itself
      expect(engine.check!.kl).toBeLessThan(1e-9);
      expect(engine.check!.chunkedKl).toBeLessThan(1e-9);
      return answer(engine);
    });
    const onCpu = await withEngine({ provider: 'cpu' }, 'decode', async (engine) => {
      expect(engine.check).toBeUndefined();
      return answer(engine);
    });
    expect(onGpu).toBe(onCpu);
  },
);

test('auto does not take a GPU that is made of software, and says why', async () => {
  const device = await withEngine({ provider: 'auto' }, 'decode', async (engine) => engine.device);
  // A machine that runs these tests may have a GPU of its own.
  if (gpuVendors().length > 0) expect(device.reason).toMatch(/^auto: /);
  else expect(device).toEqual({ kind: 'cpu', name: 'CPU', reason: 'auto: the system lists no GPU' });
});

test('an engine that exceeds --device-memory is refused with the arithmetic before the device is opened', async () => {
  const asked = { provider: 'webgpu', deviceMemory: 1 << 20 } as const;
  await expect(withEngine(asked, 'both', async () => {})).rejects.toMatchObject({
    code: 'out_of_memory',
    message: expect.stringMatching(/3 slots x 64 tokens x \d+ bytes = .*--device-memory 1048576 is 0\.0 GiB/),
  });
});

test('slots too short for the check are refused', async () => {
  await expect(withEngine({ provider: 'webgpu', capacity: 48 }, 'decode', async () => {})).rejects.toMatchObject({
    code: 'config_invalid',
    message: expect.stringContaining('--capacity 48 is less than the 49 tokens'),
  });
});
