/** Properties that show only over time: the event loop while the engine computes, and memory over many steps. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { CpuEngineKv } from '../../services/lib/engine/engine-kv.ts';
import { DecoderSession } from '../../services/lib/engine/session.ts';
import { KvPool } from '../../services/lib/kv/pool.ts';
import { openBundle } from '../../services/lib/model/bundle/bundle.ts';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { NO_SOFT_TOKENS } from '../../services/lib/request/token-prompt.ts';

const MODELS = {
  /** Slow enough to keep a thread busy for a while. */
  tinyCoder: join(import.meta.dirname, '..', '..', 'models', 'tiny-coder'),
  /** Fast enough for thousands of steps in a second. */
  golden: join(import.meta.dirname, '..', 'goldens', 'qwen2-tied'),
};

const cleanUp: (() => Promise<void> | void)[] = [];
afterAll(async () => {
  for (const step of cleanUp.reverse()) await step();
});

async function load(llm: string): Promise<DecoderSession> {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-long-run-'));
  cleanUp.push(() => rm(dir, { recursive: true, force: true }));
  await exportBundle({ llm, to: join(dir, 'bundle'), precision: 'fp32' });
  const bundle = await openBundle(join(dir, 'bundle'));
  const { spec } = bundle.manifest.llm;
  const shape = { vocabSize: spec.vocab, hiddenSize: spec.hidden };
  const pool = new KvPool(new CpuEngineKv(spec, 2, 2048));
  const session = await DecoderSession.load(bundle.llm, shape, pool, { threads: 1 });
  cleanUp.push(() => session.dispose());
  return session;
}

test('the event loop is not blocked while a long prompt is computed', async () => {
  const session = await load(MODELS.tinyCoder);
  const ids = Int32Array.from({ length: 2000 }, (_, i) => i % 4000);
  let ticks = 0;
  let running = true;
  const tick = () => {
    ticks++;
    if (running) setImmediate(tick);
  };
  setImmediate(tick);
  await session.chunk({ slot: 0, past: 0, ids, soft: NO_SOFT_TOKENS, logitRows: [ids.length - 1] });
  running = false;
  // The run takes hundreds of milliseconds. On the loop's own thread it would leave time for one or two turns.
  expect(ticks).toBeGreaterThan(100);
});

test('memory does not grow over 10,000 decode steps and 200 chunks', async () => {
  const session = await load(MODELS.golden);
  const [ids, lengths] = [Int32Array.of(5, 6), Int32Array.of(100, 120)];
  const chunk = { slot: 1, past: 0, ids: Int32Array.of(1, 2, 3), soft: NO_SOFT_TOKENS, logitRows: [2] };
  const work = async (steps: number) => {
    for (let i = 0; i < steps; i++) {
      await session.step(ids, lengths);
      if (i % 50 === 0) await session.chunk(chunk);
    }
    global.gc?.();
    return process.memoryUsage().rss;
  };
  await work(1000); // buffers and JIT settle
  const before = await work(1000);
  const after = await work(10_000);
  // Leaking one tensor handle per step would cost megabytes; leaking one row of logits, 20 MB.
  expect(after - before).toBeLessThan(16 * 2 ** 20);
});
