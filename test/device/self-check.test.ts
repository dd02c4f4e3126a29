/** Engines on a GPU that computes right, the software one seen as NVIDIA's: they pass the check and answer alike. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, onTestFinished, test, vi } from 'vitest';
import { type EngineConfig, type EngineWork, loadEngine, type WorkerEngine } from '../../services/lib/engine/load.ts';
import { Binding } from '../../services/lib/engine/ort.ts';
import { gpuVendors } from '../../services/lib/engine/provider.ts';
import { DecoderSession } from '../../services/lib/engine/session.ts';
import { ENGINE_SETTINGS } from '../../services/lib/engine/settings.ts';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { FileGuard } from '../../services/lib/model/bundle/integrity.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
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
    const chunks = vi.spyOn(DecoderSession.prototype, 'chunk');
    onTestFinished(() => chunks.mockRestore());
    const onGpu = await withEngine({ provider: 'webgpu' }, work, async (engine) => {
      // The first prompt with compressed context finds its kernels compiled.
      expect(chunks.mock.calls.some(([{ soft }]) => soft.positions.length > 0)).toBe(true);
      expect(engine.device).toMatchObject({ kind: 'webgpu', reason: '--provider webgpu' });
      expect(engine.session.picksTokens).toBe(work !== 'prefill'); // which would take memory for logits
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

test('the longest chunk is tried at the end of a slot, and one that is wrong there is refused', async () => {
  const asked = { provider: 'webgpu', capacity: 160, prefillChunkTokens: 64 } as const;
  const chunks = vi.spyOn(DecoderSession.prototype, 'chunk');
  onTestFinished(chunks.mockRestore);
  await withEngine(asked, 'both', async () => {});
  const tried = chunks.mock.calls.map(([{ past, ids }]) => [past, ids.length]);
  expect(tried).toContainEqual([160 - 65, 65]); // a chunk takes the last token of a prompt along
  const { chunk } = DecoderSession.prototype;
  chunks.mockRestore();
  // As where the memory for the results of a run of 65 tokens is used up.
  const lossy = vi.spyOn(DecoderSession.prototype, 'chunk').mockImplementation(async function (
    this: DecoderSession,
    ...args
  ) {
    const logits = await chunk.apply(this, args);
    return args[0].ids.length > 64 ? logits.map((logit) => logit / 2) : logits;
  });
  onTestFinished(lossy.mockRestore);
  await expect(withEngine(asked, 'both', async () => {})).rejects.toMatchObject({
    code: 'out_of_memory',
    message: expect.stringMatching(/a chunk of 65 tokens at the end of a slot of 160 wrong/),
  });
});

test('a GPU that fails at the prompt of its check is refused with the reason and the remedy', async () => {
  const { chunk } = DecoderSession.prototype;
  const failing = vi.spyOn(DecoderSession.prototype, 'chunk').mockImplementation(async function (
    this: DecoderSession,
    ...args
  ) {
    if (this.picksTokens) throw new ServingError('runtime_failed', 'ONNX Runtime: Too many storage buffers');
    return chunk.apply(this, args); // what the CPU computes is what the device is compared with
  });
  onTestFinished(failing.mockRestore);
  await expect(withEngine({ provider: 'webgpu' }, 'decode', async () => {})).rejects.toMatchObject({
    code: 'provider_unavailable',
    message: expect.stringMatching(
      /^WebGPU on llvmpipe .* fails in its check \(ONNX Runtime: Too many storage buffers\): lower --slots or --capacity/,
    ),
  });
});

test('an engine whose GPU fails at two steps in a row says that it is lost, and not before', async () => {
  await withEngine({ provider: 'webgpu' }, 'decode', async ({ session, lost }) => {
    const run = vi.spyOn(Binding.prototype, 'run');
    onTestFinished(run.mockRestore);
    const step = () => session.pick(Int32Array.of(1), Int32Array.of(1));
    let reason: unknown;
    void lost!.then((error) => {
      reason = error;
    });
    for (const wanted of [undefined, expect.objectContaining({ code: 'runtime_failed' })]) {
      run.mockRejectedValueOnce(new ServingError('runtime_failed', 'the device was reset'));
      await expect(step()).rejects.toMatchObject({ code: 'runtime_failed' });
      expect(reason).toEqual(wanted);
    }
  });
});

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
    message: expect.stringMatching(/3 slots x 64 tokens x \d+ bytes = .*--device-memory 1048576 is 1\.0 MiB/),
  });
});

test('slots too short for the check are refused', async () => {
  await expect(withEngine({ provider: 'webgpu', capacity: 48 }, 'decode', async () => {})).rejects.toMatchObject({
    code: 'config_invalid',
    message: expect.stringContaining('--capacity 48 is less than the 49 tokens'),
  });
});
