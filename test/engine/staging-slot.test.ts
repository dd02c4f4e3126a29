/**
 * Prompts that are computed in a staging slot: the KV caches are the same as where every prompt is computed in its own
 * slot, whatever comes between two of its chunks, and a prompt's positions are copied once each.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { CpuEngineKv } from '../../services/lib/engine/engine-kv.ts';
import { DecoderSession } from '../../services/lib/engine/session.ts';
import { rowCount } from '../../services/lib/kv/layout.ts';
import { KvPool } from '../../services/lib/kv/pool.ts';
import { openBundle } from '../../services/lib/model/bundle/bundle.ts';
import { NO_SOFT_TOKENS } from '../../services/lib/request/token-prompt.ts';
import { smallestBundle } from '../support/smallest-bundle.ts';
import { StagedKv } from '../support/staged-kv.ts';

const SLOTS = 3;
const CAPACITY = 48;

let dir: string;
let staged: DecoderSession;
let memory: StagedKv;
let inPlace: DecoderSession;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-staging-'));
  const { llm, manifest } = await openBundle(await smallestBundle(dir));
  const { spec } = manifest.llm;
  const shape = { vocabSize: spec.vocab, hiddenSize: spec.hidden };
  memory = new StagedKv(spec, SLOTS, CAPACITY);
  staged = await DecoderSession.load(llm, shape, new KvPool(memory), { threads: 1 });
  inPlace = await DecoderSession.load(llm, shape, new KvPool(new CpuEngineKv(spec, SLOTS, CAPACITY)), { threads: 1 });
});
afterAll(async () => {
  await staged?.dispose();
  await inPlace?.dispose();
  await rm(dir, { recursive: true, force: true });
});

const slot = fc.nat(SLOTS - 1);
const token = fc.integer({ min: 1, max: 60 });
const operation = fc.oneof(
  // Half of all chunks go on where their slot ends, as those of a prompt do.
  fc.record({
    kind: fc.constant('chunk' as const),
    slot,
    from: fc.option(slot, { nil: undefined }),
    past: fc.option(fc.nat(CAPACITY), { nil: undefined }),
    ids: fc.array(token, { minLength: 1, maxLength: 9 }),
    cancelled: fc.integer({ min: 0, max: 9 }).map((n) => n === 0),
  }),
  // Some steps write again what lies there.
  fc.record({ kind: fc.constant('step' as const), slot, token, back: fc.nat(2) }),
  fc.record({ kind: fc.constant('copy' as const), slot, other: slot, start: fc.nat(CAPACITY) }),
  fc.record({ kind: fc.constant('swap' as const), slot, other: slot }),
  fc.record({
    kind: fc.constant('write' as const),
    slot,
    at: fc.nat(CAPACITY),
    value: fc.integer({ min: 0, max: 63 }),
  }),
);

/** A session, and how many positions of each of its slots hold content. */
class Subject {
  readonly session: DecoderSession;
  readonly lengths = new Array<number>(SLOTS).fill(0);
  constructor(session: DecoderSession) {
    this.session = session;
  }

  async apply(op: typeof operation extends fc.Arbitrary<infer T> ? T : never): Promise<Float32Array | undefined> {
    const { pool } = this.session;
    const { lengths } = this;
    const claim = (index: number, length: number) => {
      lengths[index] = length;
      pool.claim(index, length);
    };
    const length = lengths[op.slot] as number;
    switch (op.kind) {
      case 'chunk': {
        const from = op.from ?? op.slot;
        const past = Math.min(op.past ?? CAPACITY, lengths[from] as number);
        const ids = Int32Array.from(op.ids).subarray(0, CAPACITY - 1 - past);
        if (ids.length === 0) return undefined;
        const chunk = { slot: op.slot, past, ids, soft: NO_SOFT_TOKENS, logitRows: [ids.length - 1] };
        const signal = op.cancelled ? AbortSignal.abort(new Error('hung up')) : undefined;
        const computed = this.session.chunk({ ...chunk, ...(op.from !== undefined && { copyFrom: op.from }) }, signal);
        if (signal) {
          await expect(computed).rejects.toThrow('hung up');
          // Where a beginning was to come from another slot, it need not have come.
          claim(op.slot, from === op.slot ? past : 0);
          return undefined;
        }
        const logits = await computed;
        claim(op.slot, past + ids.length);
        return logits;
      }
      case 'step': {
        const at = length - op.back;
        if (at <= 0 || at >= CAPACITY - 1) return undefined;
        const logits = (await this.session.step(Int32Array.of(op.token), Int32Array.of(at), op.slot)).slice();
        claim(op.slot, at + 1);
        return logits;
      }
      case 'copy': {
        const end = length;
        const start = Math.min(op.start, end, lengths[op.other] as number); // what lies before it is content
        await pool.store.copy(op.slot, op.other, end, start);
        claim(op.other, end);
        return undefined;
      }
      case 'swap': {
        const other = lengths[op.other] as number;
        await pool.store.swap(op.slot, op.other, Math.max(length, other));
        claim(op.slot, other);
        claim(op.other, length);
        return undefined;
      }
      case 'write': {
        if (op.at >= length) return undefined;
        const rows = rowCount(pool.layout);
        const range = { start: op.at, end: op.at + 1, rowStart: 0, rowEnd: rows };
        const content = new Float32Array(rows * pool.layout.headDim).fill(op.value / 64);
        await pool.store.write(op.slot, range, new Uint8Array(content.buffer));
        return undefined;
      }
    }
  }

  /** The bytes of all content, slot after slot. */
  async content(): Promise<string[]> {
    const { store, layout } = this.session.pool;
    const found: string[] = [];
    for (const [index, end] of this.lengths.entries()) {
      const rows = await store.read(index, { start: 0, end, rowStart: 0, rowEnd: rowCount(layout) });
      found.push(Buffer.concat([...rows]).toString('hex'));
    }
    return found;
  }
}

test('whatever comes between the chunks of a prompt, caches and logits are those of prompts computed in place', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(operation, { minLength: 2, maxLength: 24 }), async (operations) => {
      const subjects = [new Subject(staged), new Subject(inPlace)] as const;
      for (const { session } of subjects) for (let i = 0; i < SLOTS; i++) session.pool.claim(i, 0);
      for (const op of operations) {
        const [found, expected] = [await subjects[0].apply(op), await subjects[1].apply(op)];
        expect(found).toEqual(expected);
      }
      expect(await subjects[0].content()).toEqual(await subjects[1].content());
    }),
    { numRuns: 400 },
  );
});

test('each position of a prompt is copied once, however many chunks and steps of others come between', async () => {
  const subject = new Subject(staged);
  const chunk = {
    kind: 'chunk' as const,
    slot: 1,
    from: undefined,
    past: undefined,
    ids: [5, 6, 7, 8],
    cancelled: false,
  };
  subject.session.pool.claim(0, 4);
  subject.lengths[0] = 4;
  memory.copied = 0;
  for (let i = 0; i < 8; i++) {
    await subject.apply(chunk);
    await subject.apply({ kind: 'step', slot: 0, token: 3, back: 0 });
  }
  expect(memory.copied).toBe(32);
  // The chunk of another prompt takes the staging slot: the beginning is copied in again, once.
  await subject.apply({ ...chunk, slot: 2 });
  await subject.apply(chunk);
  expect(memory.copied).toBe(32 + 4 + 32 + 4);
});
