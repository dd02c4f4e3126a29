/**
 * Memory of a process whose decoder computes for long on the tests' software GPU. A leak shows in its resident memory:
 * the memory of that GPU is the process's own.
 *
 * Resident memory also rises once in a while without a leak: a heap of JavaScript or of the C library takes another
 * piece. A leak takes its bytes again and again. So the test asks that memory levels off: after some stretch of 500
 * steps that is so, however many such pieces came before.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { rowCount } from '../../services/lib/kv/layout.ts';
import { openBundle } from '../../services/lib/model/bundle/bundle.ts';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { NO_SOFT_TOKENS } from '../../services/lib/request/token-prompt.ts';
import { decoderOn, softwareGpu } from '../support/device-decoder.ts';
import { COMPILING_MS, DEVICE_MODEL } from '../support/vulkan.ts';

const CAPACITY = 512;
/** Stretches of 500 decode steps in which memory may come to rest. */
const STRETCHES = 8;
/** A hand-over whose 300 KiB leak would make 15 MiB in a stretch: it has 50 of them. */
const LEVEL_BYTES = 8 * 2 ** 20;

const gpu = softwareGpu();
let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-device-long-run-'));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

test(
  'memory levels off over stretches of 500 decode steps with prompts, hand-overs and copies of KV between them',
  async () => {
    await exportBundle({ llm: DEVICE_MODEL, to: join(dir, 'bundle'), precision: 'fp32' });
    const bundle = await openBundle(join(dir, 'bundle'));
    const device = gpu();
    const { session, store, dispose } = await decoderOn(device, bundle, { capacity: CAPACITY });
    const ids = Int32Array.from({ length: 40 }, (_, i) => (i * 37) % session.vocabSize);
    const rows = { start: 0, end: 400, rowStart: 0, rowEnd: rowCount(store.layout) };
    /** Steps of two rows; every tenth is preceded by a prompt that is handed over to another slot and copied back. */
    const work = async (steps: number) => {
      for (let i = 0; i < steps; i++) {
        if (i % 10 === 0) {
          await session.chunk({ slot: 0, past: 0, ids, soft: NO_SOFT_TOKENS, logitRows: [ids.length - 1] });
          await store.write(1, rows, Buffer.concat(await store.read(0, rows)));
          await store.copy(1, 0, rows.end);
        }
        await session.step(Int32Array.of(5, 6), Int32Array.of(40 + (i % 400), 41 + (i % 300)));
      }
      return process.memoryUsage().rss;
    };
    try {
      let before = await work(300); // buffers of every size, and what JavaScript compiles, are there
      const bytes = device.bytes;
      const growth: number[] = [];
      do {
        const after = await work(500);
        growth.push(after - before);
        before = after;
        expect(device.bytes).toBe(bytes);
      } while ((growth.at(-1) ?? 0) >= LEVEL_BYTES && growth.length < STRETCHES);
      expect(Math.min(...growth), `bytes that each stretch added: ${growth}`).toBeLessThan(LEVEL_BYTES);
    } finally {
      await dispose();
    }
  },
  COMPILING_MS,
);
