/** Engines that the machine cannot hold are refused before gigabytes are read, with the numbers that say why. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest';
import { type EngineConfig, type EngineWork, loadEngine } from '../../services/lib/engine/load.ts';
import { engineMemory } from '../../services/lib/engine/memory.ts';
import { ENGINE_SETTINGS } from '../../services/lib/engine/settings.ts';
import { positionBytes } from '../../services/lib/kv/layout.ts';
import type { Manifest } from '../../services/lib/model/bundle/bundle.ts';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { FileGuard } from '../../services/lib/model/bundle/integrity.ts';
import { createLogger } from '../../services/lib/process/log.ts';
import { loadConfig } from '../../services/settings.ts';

const GIB = 2 ** 30;
const machine = vi.hoisted(() => ({ bytes: 0 }));
vi.mock('node:os', async (original) => ({ ...(await original<object>()), totalmem: () => machine.bytes }));

let dir: string;
let manifest: Manifest;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-load-'));
  const llm = join(import.meta.dirname, '../goldens/qwen2-tied');
  manifest = await exportBundle({ llm, to: join(dir, 'bundle'), precision: 'fp32' });
  vi.spyOn(process, 'constrainedMemory').mockReturnValue(0);
});
afterAll(() => rm(dir, { recursive: true, force: true }));

const log = createLogger('test', 'silent');
const load = (asked: Partial<EngineConfig>, work: EngineWork = 'decode') => {
  const model = join(dir, 'bundle');
  const config = loadConfig(ENGINE_SETTINGS, { model, provider: 'cpu', threads: 1, prepacked: 'off' }, {});
  return loadEngine({ ...config, ...asked }, work, log, new FileGuard(log));
};
const kvBytes = (slots: number, capacity: number) => positionBytes(manifest.llm.spec) * slots * capacity;

test("KV that exceeds the machine's memory is refused with the arithmetic", async () => {
  const [slots, capacity] = [4096, 2048];
  machine.bytes = kvBytes(slots, capacity);
  const perToken = kvBytes(1, 1);
  const gib = (kvBytes(slots, capacity) / GIB).toFixed(1);
  await expect(load({ slots, capacity })).rejects.toMatchObject({
    code: 'out_of_memory',
    message: expect.stringContaining(`4096 slots x 2048 tokens x ${perToken} bytes = ${gib} GiB`),
  });
});

test('the logits of every slot count as memory too', async () => {
  const [slots, capacity] = [8, 16];
  const { vocab } = manifest.llm.spec;
  const weights = manifest.llm.files.reduce((sum, { bytes }) => sum + bytes, 0);
  const logits = slots * vocab * 4;
  machine.bytes = weights + kvBytes(slots, capacity) + logits - 1;
  await expect(load({ slots, capacity })).rejects.toMatchObject({
    code: 'out_of_memory',
    message: expect.stringContaining(`8 slots x ${vocab} ids x 4 bytes`),
  });
  machine.bytes++;
  const { session } = await load({ slots, capacity });
  session.dispose();
});

test('verify runs count as memory where a worker decodes with them', async () => {
  const [slots, capacity] = [2, 64];
  const { weights, kv, logits, verify } = engineMemory(manifest, 'llm', slots, capacity, { verified: true });
  expect(verify).toBeGreaterThan((2 + 3 + 4 + 8) * manifest.llm.spec.vocab * 4);
  machine.bytes = weights + kv + logits + verify - 1;
  await expect(load({ slots, capacity, speculation: 'auto' })).rejects.toMatchObject({
    code: 'out_of_memory',
    message: expect.stringMatching(/verify runs about .*set --speculation off/),
  });
  const { session } = await load({ slots, capacity });
  session.dispose();
});

test('--device-memory must also hold the results of the longest chunk, whatever --prefill-chunk-tokens says', async () => {
  const [slots, capacity, tokens] = [2, 256, 200];
  const { spec } = manifest.llm;
  const scratch = (run: number) => run * (3 * spec.intermediate + 2 * spec.hidden) * 4;
  const { weights, kv, logits } = engineMemory(manifest, 'llm', slots, capacity, { stepRows: 1 });
  const need = (run: number) => weights + kv + logits + scratch(run);
  const fits = (bytes: number) => {
    const asked = { slots, capacity, deviceMemory: bytes, prefillChunkTokens: tokens, provider: 'webgpu' } as const;
    return load(asked, 'prefill');
  };
  await expect(fits(need(tokens + 1) - 1)).rejects.toMatchObject({ code: 'out_of_memory' });
  vi.stubEnv('VK_DRIVER_FILES', '/nowhere.json'); // what fits is opened, and there is no device
  onTestFinished(() => void vi.unstubAllEnvs());
  await expect(fits(need(tokens + 1))).rejects.toMatchObject({ code: 'provider_unavailable' });
});

test('an engine that is disposed of refuses the moves of KV that were still waiting for their turn', async () => {
  machine.bytes = 1024 * GIB;
  const { session, dispose } = await load({ slots: 2, capacity: 16 });
  await dispose();
  const refused = expect.objectContaining({ code: 'draining' });
  expect(() => session.pool.store.copy(0, 1, 1)).toThrow(refused);
  expect(() => session.pool.store.read(0, { start: 0, end: 1, rowStart: 0, rowEnd: 1 })).toThrow(refused);
});

test("a slot longer than the model's positions is refused", async () => {
  const { maxPositions } = manifest.llm;
  machine.bytes = 1024 * GIB;
  await expect(load({ slots: 1, capacity: maxPositions + 1 })).rejects.toMatchObject({
    code: 'config_invalid',
    message: expect.stringMatching(new RegExp(`--capacity ${maxPositions + 1} exceeds the ${maxPositions} positions`)),
  });
});

describe('int8 KV', () => {
  const [slots, capacity] = [4, 64];
  let model: string;
  let int8: Manifest;

  beforeAll(async () => {
    model = join(dir, 'int8-kv');
    int8 = await exportBundle({
      llm: join(import.meta.dirname, '../goldens/qwen2-tied'),
      to: model,
      precision: 'fp32',
      kvScales: async ({ spec }) => new Float32Array(2 * spec.layers * spec.kvHeads * spec.headDim).fill(0.01),
    });
  });

  test('takes a quarter of the memory of floats, and a slot of floats where prompts are computed', async () => {
    const floats = kvBytes(1, capacity);
    const decode = engineMemory(int8, 'llm', slots, capacity, { computesPrompts: false });
    expect(decode).toMatchObject({ kv: (slots * floats) / 4, staged: 0 });
    const prefill = engineMemory(int8, 'llm', slots, capacity, { computesPrompts: true });
    expect(prefill).toMatchObject({ kv: (slots * floats) / 4, staged: floats });
    const { weights, kv, staged, logits } = prefill;
    machine.bytes = weights + kv + staged + logits - 1;
    const asked = { model, slots, capacity, prepacked: '' };
    await expect(load(asked, 'both')).rejects.toMatchObject({
      code: 'out_of_memory',
      message: expect.stringContaining('a slot of floats for prompts'),
    });
    machine.bytes++;
    await (await load(asked, 'both')).dispose();
  });

  test('is refused where prompts and steps would have a copy of the weights each, with what to do', async () => {
    machine.bytes = GIB;
    await expect(load({ model, slots, capacity, prepacked: 'off' }, 'both')).rejects.toMatchObject({
      code: 'config_invalid',
      message: expect.stringMatching(/--prepacked off would load the weights twice: leave --prepacked out/),
    });
  });
});
