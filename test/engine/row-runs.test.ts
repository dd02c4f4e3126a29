/** Verify runs of a real model: logits and KV are those of decode steps, bit for bit, where kernels allow it. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, onTestFinished, test } from 'vitest';
import { openCpuKv } from '../../services/lib/engine/bundle-kv.ts';
import type { CpuEngineKv } from '../../services/lib/engine/engine-kv.ts';
import { prepackedCache } from '../../services/lib/engine/load.ts';
import { openRows } from '../../services/lib/engine/row-runs.ts';
import { DecoderSession } from '../../services/lib/engine/session.ts';
import { rowCount } from '../../services/lib/kv/layout.ts';
import { KvPool } from '../../services/lib/kv/pool.ts';
import { filesOf, openBundle } from '../../services/lib/model/bundle/bundle.ts';
import type { Precision } from '../../services/lib/model/bundle/choices.ts';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { FileGuard } from '../../services/lib/model/bundle/integrity.ts';
import { createLogger } from '../../services/lib/process/log.ts';
import { NO_SOFT_TOKENS } from '../../services/lib/request/token-prompt.ts';
import { TINY_CODER } from '../support/models.ts';

const SILENT = createLogger('test', 'silent');
const dir = await mkdtemp(join(tmpdir(), 'llavacode-rows-'));
afterAll(() => rm(dir, { recursive: true, force: true }));

/** The decoder of the model that ships. @param prepacked whether sessions can share weights. */
async function open(precision: Precision, prepacked = true) {
  const bundle = await openBundle(await exported(precision));
  const { spec } = bundle.manifest.llm;
  const memory = await openCpuKv(bundle, 3, 256);
  const files = new FileGuard(SILENT);
  files.serveFrom(bundle.dir, filesOf(bundle.manifest, ['llm']));
  const options = { threads: 2, prepacked: prepackedCache(bundle, prepacked ? '' : 'off', SILENT, files) };
  const shape = { vocabSize: spec.vocab, hiddenSize: spec.hidden };
  const session = await DecoderSession.load(bundle.llm, shape, new KvPool(memory), options);
  onTestFinished(() => session.dispose());
  const why = await session.openVerifier(bundle.llm, options);
  return { session, memory, why, bundle, options, shape };
}

const bundles = new Map<Precision, Promise<string>>();

async function exported(precision: Precision): Promise<string> {
  const to = join(dir, precision);
  const made = bundles.get(precision) ?? exportBundle({ llm: TINY_CODER, to, precision }).then(() => to);
  bundles.set(precision, made);
  return made;
}

const content = (memory: CpuEngineKv, slot: number, end: number) =>
  Buffer.concat(memory.read(slot, { start: 0, end, rowStart: 0, rowEnd: rowCount(memory.layout) }));
const bits = (values: Float32Array) => Buffer.from(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
const some = (count: number, seed: number) =>
  Int32Array.from({ length: count }, (_, i) => ((i + 1) * 7919 * seed) % 4000);

/** Whether this CPU's kernels compute a row of a step beside another as they do alone. */
async function rowsAreAlike(session: DecoderSession): Promise<boolean> {
  const [ids, lengths] = [Int32Array.of(77, 77), Int32Array.of(0, 0)];
  const alone = bits(await session.step(ids.subarray(1), lengths.subarray(1)));
  return bits((await session.step(ids, lengths)).subarray(session.vocabSize)).equals(alone);
}

test.each(['fp32', 'int8', 'int4'] as const)(
  '%s: there are verify runs where a row is computed as alone',
  async (precision) => {
    const { session, why } = await open(precision);
    const alike = await rowsAreAlike(session);
    expect(why).toBe(alike ? undefined : 'this CPU computes several rows in another way than one');
    expect(session.verifier === undefined).toBe(!alike);
  },
);

/** On some CPUs (Sapphire Rapids) those for 8-bit weights compute one row in another way than several. */
const expectOtherKernels = (precision: Precision) => expect(precision).toBe('int8');

describe.each(['fp32', 'int8'] as const)('%s', (precision) => {
  test('logits and KV are those of steps, and a rejected row leaves nothing that is read', async () => {
    const { session, memory, why } = await open(precision);
    if (why !== undefined) return expectOtherKernels(precision);
    expect(session.rows).toEqual([1, 2, 3, 4, 8]);
    const prompt = some(60, 1);
    for (const slot of [0, 1, 2]) {
      await session.chunk({ slot, past: 0, ids: prompt, soft: NO_SOFT_TOKENS, logitRows: [59] });
    }
    const vocab = session.vocabSize;
    const beside = content(memory, 2, 256);
    let past = 60;
    for (const [turn, rows] of [2, 8, 3, 4, 2, 8].entries()) {
      const ids = some(rows, turn + 2);
      const logits = (await session.verify(0, past, ids)).slice();
      // Only the first half is taken: the next run writes over the rest.
      const taken = Math.ceil(rows / 2);
      for (let row = 0; row < rows; row++) {
        const expected = await session.step(ids.subarray(row, row + 1), Int32Array.of(past + row), 1);
        expect(bits(logits.subarray(row * vocab, (row + 1) * vocab)).equals(bits(expected))).toBe(true);
      }
      past += taken;
      expect(content(memory, 0, past).equals(content(memory, 1, past))).toBe(true);
    }
    expect(content(memory, 2, 256).equals(beside)).toBe(true);
  });

  test('a step beside others gives the same bits, so a sequence may change between both', async () => {
    const { session, why } = await open(precision);
    if (why !== undefined) return expectOtherKernels(precision);
    for (const slot of [0, 1]) {
      await session.chunk({ slot, past: 0, ids: some(20, 3), soft: NO_SOFT_TOKENS, logitRows: [19] });
    }
    const ids = some(2, 5);
    const verified = bits((await session.verify(0, 20, ids)).subarray(0, session.vocabSize));
    const both = await session.step(Int32Array.of(ids[0]!, ids[0]!), Int32Array.of(20, 20), 0);
    expect(bits(both.subarray(session.vocabSize)).equals(verified)).toBe(true);
  });
});

test('a run that does not fit the slot is refused', async () => {
  const { session } = await open('fp32');
  await expect(session.verify(0, 255, some(2, 1))).rejects.toMatchObject({ code: 'context_length_exceeded' });
});

test('without prepacked weights, of which each session would have a copy, there are no verify runs', async () => {
  const { session, why } = await open('fp32', false);
  expect(why).toContain('--prepacked');
  expect(session.verifier).toBeUndefined();
});

test('a difference in the last bit of one logit is found, and there are no verify runs', async () => {
  const { session, memory, bundle, options, shape } = await open('fp32');
  const other = {
    vocabSize: session.vocabSize,
    async step(ids: Int32Array, lengths: Int32Array, first: number) {
      const logits = (await session.step(ids, lengths, first)).slice();
      new Int32Array(logits.buffer)[77]! ^= 1;
      return logits;
    },
  };
  expect(await openRows(bundle.llm, other, memory, shape, options)).toBeUndefined();
  const set = await openRows(bundle.llm, session, memory, shape, options);
  expect([...set!.keys()]).toEqual([2, 3, 4, 8]);
  for (const runs of set!.values()) runs.dispose();
});
