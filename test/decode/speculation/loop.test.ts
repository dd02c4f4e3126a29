/** Speculation in the loop: tokens are those of plain decoding, and nothing that was rejected is seen. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { DecodeLoop } from '../../../services/decode/loop.ts';
import type { Drafts } from '../../../services/decode/speculation/draft-index.ts';
import type { KvSlot } from '../../../services/lib/kv/pool.ts';
import { continuation, FakeEngine, gate, VOCAB } from '../../support/fake-engine.ts';
import { alone, fill, join } from '../../support/kv-reader.ts';

/** Verify runs that cost hardly more than a step: everything that is found is tried. */
const CHEAP = { 1: 100, 2: 100.1, 3: 100.2, 4: 100.3, 8: 100.7 };

const token = fc.nat(VOCAB - 1);
const prompts = fc.array(token, { minLength: 1, maxLength: 6 });

/** A text that is right up to some places, where something else stands. */
const spoilt = (text: readonly number[], wrong: readonly number[]) =>
  text.map((id, i) => (wrong.includes(i) ? (id + 1) % VOCAB : id));

describe('the tokens', () => {
  test('are those of plain decoding, and the KV holds them alone, for all texts, stop ids and limits', async () => {
    const places = fc.array(fc.nat(20), { maxLength: 6 });
    await fc.assert(
      fc.asyncProperty(
        prompts,
        fc.integer({ min: 2, max: 24 }),
        places,
        fc.array(token, { maxLength: 2 }),
        async (...given) => {
          const [prompt, maxTokens, wrong, stopTokenIds] = given;
          const expected = continuation(prompt, maxTokens, stopTokenIds);
          const drafts: Drafts = {
            texts: [{ source: 'prediction', ids: spoilt(continuation(prompt, 30).tokens, wrong) }],
            before: prompt,
          };
          const engine = new FakeEngine(3, 40).speculates(CHEAP);
          // Slots beside it hold content that no run may touch.
          const beside = [fill(engine, { prompt: [5, 6, 7], maxTokens: 1 }), undefined] as const;
          const wanted = { prompt, maxTokens, stopTokenIds, drafts };
          const slot = fill(engine, wanted) as KvSlot;
          const loop = new DecodeLoop(engine);
          if (expected.tokens.length === 1) return; // the service ends such a sequence itself
          const reader = join(loop, slot, wanted);
          await reader.ended;
          expect(reader.error).toBeUndefined();
          expect(reader.tokens).toEqual(expected.tokens);
          expect(reader.finishReason).toBe(expected.finishReason);
          // The last token has not been fed to the model.
          const held = [...prompt, ...expected.tokens.slice(0, -1)];
          expect(reader.sequence.length).toBe(held.length);
          expect(engine.read(slot.index, held.length)).toEqual(held);
          expect(engine.read(beside[0]!.index, 3)).toEqual([5, 6, 7]);
          expect(engine.pool.claimed(slot.index)).toBe(prompt.length);
        },
      ),
      { numRuns: 60 },
    );
  });

  test('come several at a time where the prediction is right', async () => {
    const engine = new FakeEngine(1, 64).speculates(CHEAP);
    const prompt = [1, 2];
    const texts = [{ source: 'prediction', ids: continuation(prompt, 40).tokens }] as const;
    const wanted = { prompt, maxTokens: 40, drafts: { texts, before: prompt } };
    const reader = join(new DecodeLoop(engine), fill(engine, wanted) as KvSlot, wanted);
    await reader.ended;
    expect(reader.tokens).toEqual(alone(reader).tokens);
    expect(engine.verified.length + engine.steps.length).toBeLessThan(12);
    expect(engine.verified.some(({ rows }) => rows === 8)).toBe(true);
  });

  test('never come beyond max_tokens: a draft is no longer than what is left', async () => {
    const engine = new FakeEngine(1, 16).speculates(CHEAP);
    const prompt = [1, 2];
    const texts = [{ source: 'prediction', ids: continuation(prompt, 40).tokens }] as const;
    const wanted = { prompt, maxTokens: 14, drafts: { texts, before: prompt } };
    const reader = join(new DecodeLoop(engine), fill(engine, wanted) as KvSlot, wanted);
    await reader.ended;
    expect(reader.error).toBeUndefined();
    expect(reader.tokens).toEqual(alone(reader).tokens);
  });
});

describe('when there is none', () => {
  const right = (prompt: readonly number[]): Drafts => ({
    texts: [{ source: 'prediction', ids: continuation(prompt, 40).tokens }],
    before: prompt,
  });

  test('two sequences share their steps, and the one that remains is verified', async () => {
    const engine = new FakeEngine(2, 64).speculates(CHEAP);
    const loop = new DecodeLoop(engine);
    const a = { prompt: [1], maxTokens: 6 };
    const b = { prompt: [2], maxTokens: 30, drafts: right([2]) };
    const begun = gate();
    engine.beforeStep = () => begun.opened;
    const readers = [a, b].map((wanted) => join(loop, fill(engine, wanted) as KvSlot, wanted));
    begun.open();
    await Promise.all(readers.map(({ ended }) => ended));
    for (const reader of readers) expect(reader.tokens).toEqual(alone(reader).tokens);
    const lastShared = engine.steps.findLastIndex((slots) => slots.length === 2);
    expect(lastShared).toBeGreaterThanOrEqual(3);
    expect(engine.verified.every(({ slot }) => slot === 1)).toBe(true);
    expect(engine.verified.length).toBeGreaterThan(0);
  });

  test('an engine without verify runs decodes one token at a time', async () => {
    const engine = new FakeEngine(1, 64);
    const wanted = { prompt: [1], maxTokens: 9, drafts: right([1]) };
    const reader = join(new DecodeLoop(engine), fill(engine, wanted) as KvSlot, wanted);
    await reader.ended;
    expect(reader.tokens).toEqual(alone(reader).tokens);
    expect(engine.steps.length).toBe(8);
  });

  test('a sequence that leaves during a verify run gets no more tokens, and its slot is free only after the run', async () => {
    const engine = new FakeEngine(1, 64).speculates(CHEAP);
    const wanted = { prompt: [1], maxTokens: 30, drafts: right([1]) };
    const run = gate();
    const loop = new DecodeLoop(engine);
    engine.beforeStep = () => (engine.verified.length > 0 ? run.opened : undefined);
    const reader = join(loop, fill(engine, wanted) as KvSlot, wanted);
    while (engine.verified.length === 0) await new Promise(setImmediate);
    const before = reader.tokens.length;
    let left = false;
    const leaving = loop.leave(reader.sequence).then(() => {
      left = true;
    });
    await new Promise(setImmediate);
    expect(left).toBe(false);
    run.open();
    await leaving;
    expect(reader.tokens.length).toBe(before);
  });

  test('a verify run that fails ends its sequence with the error', async () => {
    const engine = new FakeEngine(1, 64).speculates(CHEAP);
    const wanted = { prompt: [1], maxTokens: 30, drafts: right([1]) };
    engine.beforeStep = () => {
      if (engine.verified.length > 0) throw new Error('the device is gone');
    };
    const reader = join(new DecodeLoop(engine), fill(engine, wanted) as KvSlot, wanted);
    await reader.ended;
    expect(String(reader.error)).toContain('the device is gone');
  });
});
