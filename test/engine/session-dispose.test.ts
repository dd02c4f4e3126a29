/** Disposing the engine while it computes, which frees the graph after the last run, and runs that take too long. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import { CpuEngineKv } from '../../services/lib/engine/engine-kv.ts';
import { Binding, OrtSession } from '../../services/lib/engine/ort.ts';
import { DecoderSession } from '../../services/lib/engine/session.ts';
import { KvPool } from '../../services/lib/kv/pool.ts';
import { Checkpoint } from '../../services/lib/model/checkpoint/checkpoint.ts';
import { type DecoderSpec, readSpec } from '../../services/lib/model/checkpoint/spec.ts';
import { buildDecoder } from '../../services/lib/model/graph/decoder.ts';
import { writeModel } from '../../services/lib/model/graph/onnx.ts';
import { NO_SOFT_TOKENS } from '../../services/lib/request/token-prompt.ts';

const GOLDEN = join(import.meta.dirname, '..', 'goldens', 'qwen2-tied');

async function write(): Promise<{ graph: string; spec: DecoderSpec }> {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-dispose-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  const spec = (await readSpec(GOLDEN)) as DecoderSpec;
  const precision = { layers: 'fp32', vocabulary: 'fp32', maxPositions: 1024 } as const;
  const checkpoint = await Checkpoint.open(GOLDEN);
  await writeModel(buildDecoder(spec, checkpoint, precision), dir);
  await checkpoint.close();
  return { graph: join(dir, 'model.onnx'), spec };
}

async function load(capacity = 64): Promise<DecoderSession> {
  const { graph, spec } = await write();
  const shape = { vocabSize: spec.vocab, hiddenSize: spec.hidden };
  const pool = new KvPool(new CpuEngineKv(spec, 2, capacity));
  return DecoderSession.load(graph, shape, pool, { threads: 1 });
}

const chunk = { slot: 0, past: 0, ids: new Int32Array(40).fill(1), soft: NO_SOFT_TOKENS, logitRows: [39] };

test('a run is overdue compared with the runs before it', async () => {
  const session = await load();
  onTestFinished(() => session.dispose());
  let nowMs = 0;
  onTestFinished(vi.spyOn(performance, 'now').mockImplementation(() => nowMs).mockRestore);
  expect(session.overdueMs).toBe(0);
  const first = session.chunk(chunk); // nothing is known yet
  nowMs += 1;
  expect(session.overdueMs).toBe(1);
  await first;
  expect(session.overdueMs).toBe(0);
  const second = session.chunk(chunk);
  nowMs += 1;
  expect(session.overdueMs).toBe(0);
  await second;
});

test('a long run is compared with long runs, however long a short one took', async () => {
  const session = await load(1024);
  onTestFinished(() => session.dispose());
  let nowMs = 0;
  onTestFinished(vi.spyOn(performance, 'now').mockImplementation(() => nowMs).mockRestore);
  const run = async (tokens: number, tookMs: number) => {
    const running = session.chunk({ ...chunk, ids: new Int32Array(tokens).fill(1), logitRows: [] });
    nowMs += tookMs;
    const { overdueMs } = session;
    await running;
    return overdueMs;
  };
  await run(2, 100); // the first run, which is cold: 50 ms per token
  expect(await run(512, 500)).toBe(0); // no long run is known yet
  await run(1, 40);
  expect(await run(512, 2_000)).toBe(0);
  expect(await run(512, 20_000)).toBeGreaterThan(10_000); // not after 4 times what 512 tokens of 100 ms each would take
  expect(await run(1, 390)).toBe(0);
});

test('a disposed session finishes its current run and refuses others', async () => {
  const session = await load();
  const expected = await session.chunk(chunk);
  const running = session.chunk(chunk);
  const disposing = session.dispose();
  await expect(session.chunk({ ...chunk, slot: 1 })).rejects.toMatchObject({ code: 'draining' });
  await expect(session.step(Int32Array.of(1), Int32Array.of(40))).rejects.toMatchObject({ code: 'draining' });
  expect(await running).toEqual(expected);
  await disposing;
  await session.dispose(); // once is enough
  await expect(session.chunk(chunk)).rejects.toMatchObject({ code: 'draining' });
});

test('a session that does not decode has room for a step of one row', async () => {
  const { graph, spec } = await write();
  const pool = new KvPool(new CpuEngineKv(spec, 2, 64));
  const shape = { vocabSize: spec.vocab, hiddenSize: spec.hidden };
  const session = await DecoderSession.load(graph, shape, pool, { threads: 1, decodes: false });
  onTestFinished(() => session.dispose());
  expect(await session.step(Int32Array.of(1), Int32Array.of(0))).toHaveLength(spec.vocab);
  await expect(session.step(Int32Array.of(1, 1), Int32Array.of(0, 0))).rejects.toThrow(
    'a step of 2 rows, 1 are the most',
  );
});

test('a step that cannot be bound leaves no binding behind', async () => {
  const session = await load();
  onTestFinished(() => session.dispose());
  const freed = vi.spyOn(Binding.prototype, 'dispose');
  onTestFinished(freed.mockRestore);
  const bind = vi.spyOn(session.pool.memory, 'bind').mockImplementationOnce(() => {
    throw new RangeError('slots [0, 1) cannot be bound');
  });
  onTestFinished(bind.mockRestore);
  await expect(session.step(Int32Array.of(1), Int32Array.of(0))).rejects.toThrow('cannot be bound');
  expect(freed).toHaveBeenCalledTimes(1);
  await session.step(Int32Array.of(1), Int32Array.of(0)); // the next try is a new one
});

test('a run of another graph ends well although disposing does not wait for it', async () => {
  const { graph, spec } = await write();
  const session = await OrtSession.load(graph, { threads: 1 });
  const [positions, n] = [8, 2];
  const cache = { type: 'float32', dims: [1, spec.kvHeads, positions, spec.headDim] } as const;
  const kv = session.inputs.filter((name) => name.startsWith('past.'));
  const inputs = {
    input_ids: { type: 'int64', dims: [1, n], data: BigInt64Array.of(1n, 2n) },
    soft_tokens: { type: 'float32', dims: [0, spec.hidden], data: new Float32Array(0) },
    soft_positions: { type: 'int64', dims: [0, 2], data: new BigInt64Array(0) },
    logit_rows: { type: 'int64', dims: [1], data: BigInt64Array.of(1n) },
    seqlens_k: { type: 'int32', dims: [1], data: Int32Array.of(n - 1) },
    total_sequence_length: { type: 'int32', dims: [], data: Int32Array.of(n) },
    ...Object.fromEntries(
      kv.map((name) => [name, { ...cache, data: new Float32Array(cache.dims.reduce((a, b) => a * b)) }]),
    ),
  } as const;
  const expected = await session.run(inputs, ['logits']);
  const running = [session.run(inputs, ['logits']), session.run(inputs, ['logits'])];
  session.dispose();
  session.dispose(); // once is enough
  await expect(session.run(inputs, ['logits'])).rejects.toMatchObject({ code: 'draining' });
  expect(() => session.bind()).toThrow(expect.objectContaining({ code: 'draining' }));
  expect(await Promise.all(running)).toEqual([expected, expected]);
});
