/** The engine against the PyTorch goldens and against itself: a sequence is the same however it is computed. */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { CpuEngineKv, type EngineKv } from '../../services/lib/engine/engine-kv.ts';
import { DecoderSession } from '../../services/lib/engine/session.ts';
import { KvPool } from '../../services/lib/kv/pool.ts';
import { Checkpoint } from '../../services/lib/model/checkpoint/checkpoint.ts';
import { type DecoderSpec, readSpec } from '../../services/lib/model/checkpoint/spec.ts';
import { buildDecoder } from '../../services/lib/model/graph/decoder.ts';
import { writeModel } from '../../services/lib/model/graph/onnx.ts';
import { NO_SOFT_TOKENS, type SoftTokens } from '../../services/lib/request/token-prompt.ts';
import { StagedKv } from '../support/staged-kv.ts';

const goldens = (name: string) => join(import.meta.dirname, '..', 'goldens', name);
const argmax = (row: Float32Array) => row.reduce((best, x, i) => (x > (row[best] as number) ? i : best), 0);

const MODELS = ['qwen2-tied', 'qwen2-untied', 'llama'];
const STORES = [
  ['in place', CpuEngineKv],
  ['in a staging slot', StagedKv],
] as const;

describe.each(STORES.flatMap(([where, Kv]) => MODELS.map((name) => [name, where, Kv] as const)))(
  '%s, prompts computed %s',
  (name, _, Kv) => {
    let dir: string;
    let spec: DecoderSpec;
    let session: DecoderSession;
    let pool: KvPool<EngineKv>;
    let expected: { input_ids: number[]; greedy: number[]; greedy_soft_prefix: number[] };
    let soft: SoftTokens;
    const slots = 4;
    const capacity = 128;

    beforeAll(async () => {
      dir = await mkdtemp(join(tmpdir(), 'llavacode-session-'));
      spec = (await readSpec(goldens(name))) as DecoderSpec;
      const checkpoint = await Checkpoint.open(goldens(name));
      await writeModel(buildDecoder(spec, checkpoint, { layers: 'fp32', vocabulary: 'fp32', maxPositions: 256 }), dir);
      pool = new KvPool<EngineKv>(new Kv(spec, slots, capacity));
      const shape = { vocabSize: spec.vocab, hiddenSize: spec.hidden };
      session = await DecoderSession.load(join(dir, 'model.onnx'), shape, pool, { threads: 1 });
      expected = JSON.parse(await readFile(join(goldens(name), 'expected.json'), 'utf8'));
      const outputs = await Checkpoint.open(join(goldens(name), 'expected.safetensors'));
      const vectors = await outputs.read('soft_tokens');
      const count = vectors.length / spec.hidden;
      soft = { positions: Int32Array.from({ length: count }, (_, i) => i), vectors };
    });

    afterAll(async () => {
      session?.dispose();
      await rm(dir, { recursive: true, force: true });
    });

    /** Prefills `ids` on a slot in chunks; returns the first token. */
    async function prefill(slot: number, ids: number[], size: number, prompt: SoftTokens = NO_SOFT_TOKENS) {
      let logits = new Float32Array(0);
      for (let past = 0; past < ids.length; past += size) {
        const part = Int32Array.from(ids.slice(past, past + size));
        const inside = [...prompt.positions.keys()].filter((i) => {
          const position = prompt.positions[i] as number;
          return position >= past && position < past + part.length;
        });
        const vectors = Float32Array.from(
          inside.flatMap((i) => Array.from(prompt.vectors.subarray(i * spec.hidden, (i + 1) * spec.hidden))),
        );
        const positions = Int32Array.from(inside, (i) => (prompt.positions[i] as number) - past);
        const last = past + size >= ids.length;
        const chunk = { slot, past, ids: part, soft: { positions, vectors }, logitRows: last ? [part.length - 1] : [] };
        logits = (await session.chunk(chunk)) as Float32Array<ArrayBuffer>;
      }
      return argmax(logits);
    }

    /** Greedy decoding of several slots at once, from their first tokens on. */
    async function decode(sequences: { slot: number; length: number; first: number }[], count: number) {
      const n = Math.max(...sequences.map((s) => s.slot)) + 1;
      const outputs = sequences.map((s) => [s.first]);
      for (let i = 1; i < count; i++) {
        const ids = new Int32Array(n);
        const lengths = new Int32Array(n);
        for (const [k, s] of sequences.entries()) {
          ids[s.slot] = outputs[k]?.at(-1) as number;
          lengths[s.slot] = s.length + i - 1;
        }
        const logits = await session.step(ids, lengths);
        for (const [k, s] of sequences.entries()) {
          outputs[k]?.push(argmax(logits.subarray(s.slot * spec.vocab, (s.slot + 1) * spec.vocab)));
        }
      }
      return outputs;
    }

    test.each([1, 2, 7, 16, 29, 1000])('greedy text equals the golden one with chunks of %i', async (size) => {
      const first = await prefill(0, expected.input_ids, size);
      const [tokens] = await decode([{ slot: 0, length: expected.input_ids.length, first }], expected.greedy.length);
      expect(tokens).toEqual(expected.greedy);
    });

    test.each([1, 4, 10, 1000])(
      'greedy text after soft tokens equals the golden one with chunks of %i',
      async (size) => {
        const ids = [...Array.from(soft.positions, () => 0), ...expected.input_ids];
        const first = await prefill(2, ids, size, soft);
        const [tokens] = await decode([{ slot: 2, length: ids.length, first }], expected.greedy_soft_prefix.length);
        expect(tokens).toEqual(expected.greedy_soft_prefix);
      },
    );

    test('a batch with an empty slot in between gives each sequence the tokens it gets alone', async () => {
      const ids = expected.input_ids;
      const withSoft = [...Array.from(soft.positions, () => 0), ...ids];
      const sequences = [
        { slot: 0, length: ids.length, first: await prefill(0, ids, 1000) },
        { slot: 3, length: withSoft.length, first: await prefill(3, withSoft, 1000, soft) },
        { slot: 1, length: ids.length, first: await prefill(1, ids, 5) },
      ];
      expect(await decode(sequences, 24)).toEqual([expected.greedy, expected.greedy_soft_prefix, expected.greedy]);
    });

    test('a step that begins behind other prompts leaves them whole', async () => {
      const ids = expected.input_ids;
      const others = [await prefill(0, ids, 1000), await prefill(1, ids, 1000)];
      for (const slot of [0, 1]) pool.claim(slot, ids.length);
      let newest = await prefill(2, ids, 1000);
      for (const [i, token] of expected.greedy.entries()) {
        expect(newest).toBe(token);
        newest = argmax(await session.step(Int32Array.of(newest), Int32Array.of(ids.length + i), 2));
      }
      const sequences = others.map((first, slot) => ({ slot, length: ids.length, first }));
      expect(await decode(sequences, expected.greedy.length)).toEqual([expected.greedy, expected.greedy]);
    });

    test('a prompt goes on from the beginning of one in another slot', async () => {
      const ids = expected.input_ids;
      await prefill(1, ids, 1000);
      const past = ids.length - 3;
      const rest = { slot: 3, past, ids: Int32Array.from(ids.slice(past)), soft: NO_SOFT_TOKENS, logitRows: [2] };
      const first = argmax(await session.chunk({ ...rest, copyFrom: 1 }));
      const sequences = [1, 3].map((slot) => ({ slot, length: ids.length, first }));
      expect(await decode(sequences, expected.greedy.length)).toEqual([expected.greedy, expected.greedy]);
    });

    test('a prompt or a sequence longer than a slot is refused', async () => {
      const ids = new Int32Array(capacity + 1);
      await expect(session.chunk({ slot: 0, past: 0, ids, soft: NO_SOFT_TOKENS, logitRows: [] })).rejects.toMatchObject(
        {
          code: 'context_length_exceeded',
        },
      );
      await expect(session.step(Int32Array.of(1), Int32Array.of(capacity))).rejects.toMatchObject({
        code: 'context_length_exceeded',
      });
    });

    test('an aborted chunk rejects with the reason and the session goes on', async () => {
      const reason = new Error('enough');
      const controller = new AbortController();
      const ids = Int32Array.from({ length: 120 }, (_, i) => i);
      const running = session.chunk({ slot: 0, past: 0, ids, soft: NO_SOFT_TOKENS, logitRows: [] }, controller.signal);
      controller.abort(reason);
      await expect(running).rejects.toBe(reason);
      expect(await prefill(0, expected.input_ids, 1000)).toBe(expected.greedy[0]);
    });
  },
);
