/**
 * Memory of a process whose decoder computes for long on the tests' software GPU. A leak shows in its resident memory:
 * the memory of that GPU is the process's own.
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

const gpu = softwareGpu();
let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-device-long-run-'));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

test(
  'memory does not grow over 500 decode steps with prompts, hand-overs and copies of KV between them',
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
      await work(300); // buffers of every size, and what JavaScript compiles, are there
      const [before, bytes] = [await work(100), device.bytes];
      const after = await work(500);
      expect(device.bytes).toBe(bytes);
      // JavaScript's heap may grow by a few MiB. A hand-over whose 300 KiB leak would make 15 MiB.
      expect(after - before).toBeLessThan(8 * 2 ** 20);
    } finally {
      await dispose();
    }
  },
  COMPILING_MS,
);
