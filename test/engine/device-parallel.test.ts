/**
 * Many parts of a process use one device at once: without its lane ONNX Runtime would crash the process. The device is
 * the tests' software GPU.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { CPU } from '../../services/lib/engine/device.ts';
import type { DecoderSession } from '../../services/lib/engine/session.ts';
import { rowCount } from '../../services/lib/kv/layout.ts';
import { type Bundle, openBundle } from '../../services/lib/model/bundle/bundle.ts';
import { loadContextEncoder } from '../../services/lib/rag/encode/encode.ts';
import { NO_SOFT_TOKENS } from '../../services/lib/request/token-prompt.ts';
import { decoderOn, softwareGpu } from '../support/device-decoder.ts';
import { largestDifference } from '../support/models.ts';
import { smallestBundle } from '../support/smallest-bundle.ts';
import { COMPILING_MS } from '../support/vulkan.ts';

const PROMPT = Int32Array.from({ length: 40 }, (_, i) => 1 + ((i * 7) % 50));
const STEPS = 12;
const TEXTS = Array.from({ length: 10 }, (_, i) => ({
  path: 'a.py',
  text: `def f_${i}(x):\n${'    x = x + 1\n'.repeat((i * 3) % 11)}    return x`,
}));

const gpu = softwareGpu();
let dir: string;
let bundle: Bundle;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-device-'));
  bundle = await openBundle(await smallestBundle(dir));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

const argmax = (values: Float32Array) => values.reduce((best, value, i) => (value > values[best]! ? i : best), 0);

/** Greedy continuation of the prompt in a slot, in chunks of 16 tokens. */
async function continuation(session: DecoderSession, slot: number): Promise<number[]> {
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
}

test(
  'parallel prompts, steps, copies of KV and encodings in one process are right',
  async () => {
    const onCpu = await decoderOn(CPU, bundle);
    const expectedTokens = await continuation(onCpu.session, 0);
    await onCpu.dispose();
    const cpuEncoder = await loadContextEncoder(bundle, { threads: 1 });
    const expected = (await cpuEncoder.encode(TEXTS)).map(({ vector }) => vector);
    cpuEncoder.dispose();

    const decoder = await decoderOn(gpu(), bundle);
    const encoder = await loadContextEncoder(bundle, { device: gpu(), threads: 1 });
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
        expect(await continuation(decoder.session, 0)).toEqual(expectedTokens);
        expect(await continuation(decoder.session, 1)).toEqual(expectedTokens);
      })();
      await Promise.all([...encodings, ...abandoned, moved, decoded]);
    } finally {
      encoder.dispose();
      await decoder.dispose();
    }
  },
  COMPILING_MS,
);
