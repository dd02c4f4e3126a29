/**
 * Many parts of a process use one device at once: without its lane ONNX Runtime would crash the process. The device is
 * the tests' software GPU.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Accelerator, CPU, type Device, openDevice } from '../../services/lib/engine/device.ts';
import { DeviceKv } from '../../services/lib/engine/device-kv.ts';
import { CpuEngineKv, type EngineKv } from '../../services/lib/engine/engine-kv.ts';
import { DecoderSession } from '../../services/lib/engine/session.ts';
import { rowCount } from '../../services/lib/kv/layout.ts';
import { KvPool } from '../../services/lib/kv/pool.ts';
import { type Bundle, openBundle } from '../../services/lib/model/bundle/bundle.ts';
import { loadContextEncoder } from '../../services/lib/rag/encode/encode.ts';
import { NO_SOFT_TOKENS } from '../../services/lib/request/token-prompt.ts';
import { largestDifference } from '../support/models.ts';
import { smallestBundle } from '../support/smallest-bundle.ts';
import { useVulkan } from '../support/vulkan.ts';

const COMPILING_MS = 240_000;
const CAPACITY = 64;
const SLOTS = 3;
const PROMPT = Int32Array.from({ length: 40 }, (_, i) => 1 + ((i * 7) % 50));
const STEPS = 12;
const TEXTS = Array.from({ length: 10 }, (_, i) => ({
  path: 'a.py',
  text: `def f_${i}(x):\n${'    x = x + 1\n'.repeat((i * 3) % 11)}    return x`,
}));

let dir: string;
let bundle: Bundle;
let device: Accelerator;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-device-'));
  bundle = await openBundle(await smallestBundle(dir));
  await useVulkan();
  device = (await openDevice({ provider: 'webgpu' })) as Accelerator;
}, COMPILING_MS);
afterAll(async () => {
  expect(device.bytes).toBe(0);
  await device.dispose();
  await rm(dir, { recursive: true, force: true });
});

const argmax = (values: Float32Array) => values.reduce((best, value, i) => (value > values[best]! ? i : best), 0);

async function decoderOn(where: Device) {
  const { layers, kvHeads, headDim, vocab, hidden } = bundle.manifest.llm.spec;
  const layout = { layers, kvHeads, headDim };
  const store: EngineKv =
    where.kind === 'cpu'
      ? new CpuEngineKv(layout, SLOTS, CAPACITY)
      : await DeviceKv.create(where, layout, SLOTS, CAPACITY, 'both');
  const pool = new KvPool<EngineKv>(store);
  const session = await DecoderSession.load(bundle.llm, { vocabSize: vocab, hiddenSize: hidden }, pool, {
    device: where,
    threads: 1,
  });
  /** Greedy continuation of the prompt in a slot, in chunks of 16 tokens. */
  const tokens = async (slot: number) => {
    let logits = new Float32Array(0);
    for (let past = 0; past < PROMPT.length; past += 16) {
      const ids = PROMPT.slice(past, past + 16);
      logits = (await session.chunk({ slot, past, ids, soft: NO_SOFT_TOKENS, logitRows: [ids.length - 1] })) as never;
    }
    const out = [argmax(logits)];
    for (let i = 0; i < STEPS; i++) {
      out.push(argmax(await session.step(Int32Array.of(out.at(-1)!), Int32Array.of(PROMPT.length + i), slot)));
    }
    return out;
  };
  const dispose = async () => {
    await session.dispose();
    await store.dispose();
  };
  return { store, tokens, dispose };
}

test(
  'parallel prompts, steps, copies of KV and encodings in one process are right',
  async () => {
    const onCpu = await decoderOn(CPU);
    const expectedTokens = await onCpu.tokens(0);
    await onCpu.dispose();
    const cpuEncoder = await loadContextEncoder(bundle, { threads: 1 });
    const expected = (await cpuEncoder.encode(TEXTS)).map(({ vector }) => vector);
    cpuEncoder.dispose();

    const decoder = await decoderOn(device);
    const encoder = await loadContextEncoder(bundle, { device, threads: 1 });
    try {
      const encodings = Array.from({ length: 6 }, async (_, turn) => {
        for (let i = 0; i < 3; i++) {
          const vectors = (await encoder.encode(TEXTS.slice(turn, turn + 5))).map(({ vector }) => vector);
          for (const [j, vector] of vectors.entries()) {
            expect(largestDifference(vector, expected[turn + j]!)).toBeLessThan(1e-4);
          }
        }
      });
      const abandoned = Array.from({ length: 4 }, async () => {
        const controller = new AbortController();
        const encoding = encoder.encode(TEXTS, controller.signal);
        setImmediate(() => controller.abort(new Error('nobody waits any more')));
        await expect(encoding).rejects.toThrow('nobody waits any more');
      });
      // Slot 2 is not the decoder's: rows go in, are copied and come out while it computes.
      const rows = { start: 0, end: 8, rowStart: 0, rowEnd: rowCount(decoder.store.layout) };
      const moved = (async () => {
        for (let i = 0; i < 12; i++) {
          const bytes = new Uint8Array(rows.rowEnd * 8 * decoder.store.layout.headDim * 4).fill(i + 1);
          await decoder.store.write(2, rows, bytes);
          expect(Buffer.concat(await decoder.store.read(2, rows)).equals(bytes)).toBe(true);
        }
      })();
      const decoded = (async () => {
        expect(await decoder.tokens(0)).toEqual(expectedTokens);
        expect(await decoder.tokens(1)).toEqual(expectedTokens);
      })();
      await Promise.all([...encodings, ...abandoned, moved, decoded]);
    } finally {
      encoder.dispose();
      await decoder.dispose();
    }
  },
  COMPILING_MS,
);
