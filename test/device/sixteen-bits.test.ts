/**
 * Bundles whose activations and KV have 16 bits, as the GPU images serve them, on the tests' software GPU. Roundings
 * differ from the CPU's, so distributions are compared; what only moves KV is compared byte by byte.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import type { DeviceSetting } from '../../services/lib/engine/device.ts';
import { type EngineWork, loadEngine, type WorkerEngine } from '../../services/lib/engine/load.ts';
import { divergence, KL_LIMIT, limitsOf, promptIds } from '../../services/lib/engine/self-check.ts';
import type { DecoderSession } from '../../services/lib/engine/session.ts';
import { ENGINE_SETTINGS } from '../../services/lib/engine/settings.ts';
import { KvReceiver, KvSender } from '../../services/lib/kv/handoff.ts';
import { positionBytes, rowCount } from '../../services/lib/kv/layout.ts';
import type { Precision } from '../../services/lib/model/bundle/choices.ts';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { FileGuard } from '../../services/lib/model/bundle/integrity.ts';
import { createLogger } from '../../services/lib/process/log.ts';
import { NO_SOFT_TOKENS } from '../../services/lib/request/token-prompt.ts';
import { loadConfig } from '../../services/settings.ts';
import { TINY_CODER } from '../support/models.ts';
import { COMPILING_MS, DEVICE_MODEL, useVulkan } from '../support/vulkan.ts';

vi.setConfig({ testTimeout: COMPILING_MS, hookTimeout: COMPILING_MS });
const log = createLogger('test', 'silent');
const PROMPT = 100;
/** Those of them that another prompt goes on from. */
const REUSED = 70;
/** Tokens that follow one by one. */
const STEPS = 6;

let dir: string;
beforeAll(async () => {
  await useVulkan('right');
  dir = await mkdtemp(join(tmpdir(), 'llavacode-16-bits-'));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

describe.each<[string, Precision, string]>([
  ['the model that ships', 'int4-fp16', TINY_CODER],
  ['a random model', 'fp16', DEVICE_MODEL],
])('%s in %s', (_, precision, llm) => {
  let cpu: WorkerEngine;
  let gpu: WorkerEngine;
  let ids: Int32Array;
  /** What each engine has computed in its slot 1. */
  const computed = new Map<WorkerEngine, { readonly prompt: Float32Array; readonly steps: Float32Array }>();
  const all = (engine: WorkerEngine) => joined([computed.get(engine)!.prompt, computed.get(engine)!.steps]);

  const load = (provider: DeviceSetting['provider'], work: EngineWork = 'both') => {
    const model = join(dir, precision);
    const flags = { model, provider, slots: '3', capacity: '160', threads: '2', prepacked: join(dir, 'kept') };
    return loadEngine(loadConfig(ENGINE_SETTINGS, flags, {}), work, log, new FileGuard(log));
  };
  beforeAll(async () => {
    await exportBundle({ llm, to: join(dir, precision), precision });
    [cpu, gpu] = [await load('cpu'), await load('webgpu')];
    ids = promptIds(cpu.session.vocabSize, PROMPT + STEPS);
    for (const engine of [cpu, gpu]) {
      const { session } = engine;
      computed.set(engine, { prompt: await prompt(session, 1), steps: await steps(session, 1) });
    }
  });
  afterAll(async () => {
    await gpu?.dispose();
    await cpu?.dispose();
  });

  /** Logits of every position of the prompt from `past` on, in chunks of 64, which stays in the slot. */
  async function prompt(session: DecoderSession, slot: number, past = 0, copyFrom?: number): Promise<Float32Array> {
    const parts: Float32Array[] = [];
    for (let at = past; at < PROMPT; at += 64) {
      const piece = ids.subarray(at, Math.min(PROMPT, at + 64));
      const first = at === past && copyFrom !== undefined ? { copyFrom } : {};
      const chunk = { slot, past: at, ids: piece, soft: NO_SOFT_TOKENS, logitRows: [...piece.keys()], ...first };
      parts.push(await session.chunk(chunk));
    }
    session.pool.claim(slot, PROMPT);
    return joined(parts);
  }

  /** Logits of the tokens after the prompt, one step each. */
  async function steps(session: DecoderSession, slot: number): Promise<Float32Array> {
    const parts: Float32Array[] = [];
    for (let at = PROMPT; at < PROMPT + STEPS; at++) {
      parts.push(Float32Array.from(await session.step(ids.subarray(at, at + 1), Int32Array.of(at), slot)));
    }
    return joined(parts);
  }

  const distance = (expected: Float32Array, found: Float32Array) => divergence(expected, found, cpu.session.vocabSize);

  test('the device passes its check, and computes the distributions of the CPU, the same in every run', async () => {
    expect(gpu.device.kind).toBe('webgpu');
    expect(gpu.session.pool.memory.type).toBe('float16');
    expect(gpu.check!.kl).toBeGreaterThan(0);
    expect(distance(all(cpu), all(gpu))).toBeLessThan(KL_LIMIT[precision]);
    expect(joined([await prompt(gpu.session, 2), await steps(gpu.session, 2)])).toEqual(all(gpu));
  });

  test('a prompt goes on from a beginning in another slot, whose KV is copied bit by bit', async () => {
    const rest = await prompt(gpu.session, 2, REUSED, 1);
    const whole = computed.get(gpu)!.prompt.subarray(REUSED * gpu.session.vocabSize);
    expect(distance(whole, rest)).toBeLessThan(limitsOf(precision, 1).chunkedKl);
    const range = { start: 0, end: REUSED, rowStart: 0, rowEnd: rowCount(gpu.session.pool.layout) };
    const { store } = gpu.session.pool;
    const [copied, from] = [Buffer.concat(await store.read(2, range)), Buffer.concat(await store.read(1, range))];
    expect(copied.equals(from)).toBe(true);
  });

  /** Takes the prompt's KV from one engine to another in frames, as workers do. @returns bytes of the frames. */
  async function handOver(from: DecoderSession, to: DecoderSession): Promise<number> {
    const sender = new KvSender(from.pool.store, 1, 'float16');
    const receiver = new KvReceiver(to.pool.store, 2, '', 'float16');
    receiver.manifest({ fingerprint: '', layout: from.pool.layout, dtype: 'float16', positions: PROMPT });
    for (const [start, end] of [
      [0, 64],
      [64, PROMPT],
    ] as const) {
      for await (const frame of sender.pack(start, end)) await receiver.rows(frame);
    }
    receiver.end(sender.end([1]));
    to.pool.claim(2, PROMPT);
    return receiver.bytes;
  }

  test.each([
    ['the device', 'the CPU', () => ({ from: gpu, to: cpu })],
    ['the CPU', 'the device', () => ({ from: cpu, to: gpu })],
    ['the device', 'the device', () => ({ from: gpu, to: gpu })],
  ] as const)(
    'a hand-over from %s to %s carries 16 bits a value, unchanged, and goes on right',
    async (_from, _to, pair) => {
      const { from, to } = pair();
      expect(await handOver(from.session, to.session)).toBe(PROMPT * positionBytes(cpu.session.pool.layout));
      const range = { start: 0, end: PROMPT, rowStart: 0, rowEnd: rowCount(cpu.session.pool.layout) };
      const bytes = async ({ session }: WorkerEngine, slot: number) =>
        Buffer.concat([...(await session.pool.store.read(slot, range))]);
      expect((await bytes(to, 2)).equals(await bytes(from, 1))).toBe(true);
      expect((await bytes(to, 2)).some((byte) => byte !== 0)).toBe(true);
      const kl = distance(computed.get(from)!.steps, await steps(to.session, 2));
      expect(kl).toBeLessThan(KL_LIMIT[precision]);
    },
  );
});

function joined(parts: readonly Float32Array[]): Float32Array {
  const all = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
