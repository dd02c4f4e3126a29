/** Joining, leaving and failing between the steps of the batch. */
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { DecodeLoop, type DecodeStep, finishOf } from '../../services/decode/loop.ts';
import { NO_CHOICE } from '../../services/lib/engine/token-picker.ts';
import type { KvSlot } from '../../services/lib/kv/pool.ts';
import { GREEDY } from '../../services/lib/request/next-token.ts';
import { continuation, FakeEngine, gate, nextToken, settle } from '../support/fake-engine.ts';
import { alone, fill, join } from '../support/kv-reader.ts';

describe('joining and leaving', () => {
  test('a sequence that joins during a step takes part in the next one', async () => {
    const engine = new FakeEngine(2, 32);
    const first = gate();
    engine.beforeStep = () => first.opened;
    const loop = new DecodeLoop(engine);
    const a = join(loop, fill(engine, { prompt: [1], maxTokens: 4 }) as KvSlot, { prompt: [1], maxTokens: 4 });
    const b = join(loop, fill(engine, { prompt: [2], maxTokens: 4 }) as KvSlot, { prompt: [2], maxTokens: 4 });
    first.open();
    await Promise.all([a.ended, b.ended]);
    expect(engine.steps).toEqual([[0], [0, 1], [0, 1], [1]]);
    expect(loop.stepMs.map((ms) => ms > 0)).toEqual([true, true]); // of one sequence, and of two
    expect(a.tokens).toEqual(alone(a).tokens);
    expect(b.tokens).toEqual(alone(b).tokens);
  });

  test('the time of a step counts for a minute, so that a slow spell is forgotten', async () => {
    let nowMs = 0;
    const clock = vi.spyOn(performance, 'now').mockImplementation(() => nowMs);
    onTestFinished(() => clock.mockRestore());
    const engine = new FakeEngine(2, 32);
    const loop = new DecodeLoop(engine);
    /** Two steps of so many ms. */
    const run = async (ms: number) => {
      engine.beforeStep = async () => {
        await Promise.resolve(); // the step has begun
        nowMs += ms;
      };
      const wanted = { prompt: [1], maxTokens: 3 };
      await join(loop, fill(engine, wanted) as KvSlot, wanted).ended;
    };
    await run(1_000);
    expect(loop.stepMs).toEqual([1_000]);
    nowMs += 59_999;
    expect(loop.stepMs).toEqual([1_000]);
    nowMs += 1;
    expect(loop.stepMs).toEqual([0]);
    await run(10);
    expect(loop.stepMs).toEqual([10]);
  });

  test('leave resolves only when the current step is over', async () => {
    const engine = new FakeEngine(1, 32);
    const step = gate();
    engine.beforeStep = () => step.opened;
    const loop = new DecodeLoop(engine);
    const wanted = { prompt: [3, 4], maxTokens: 20 };
    const reader = join(loop, fill(engine, wanted) as KvSlot, wanted);
    let out = false;
    const leaving = loop.leave(reader.sequence).then(() => {
      out = true;
    });
    await settle();
    expect(out).toBe(false);
    step.open();
    await leaving;
    expect(engine.steps).toEqual([[0]]);
  });

  test('a sequence that leaves before its first step takes part in none', async () => {
    const engine = new FakeEngine(2, 32);
    const step = gate();
    engine.beforeStep = () => step.opened;
    const loop = new DecodeLoop(engine);
    const wanted = { prompt: [3, 4], maxTokens: 3 };
    const running = join(loop, fill(engine, wanted) as KvSlot, wanted);
    const slot = fill(engine, wanted) as KvSlot;
    const sequence = loop.join({ slot, sampling: GREEDY, positions: 2, firstToken: 1, maxTokens: 9 });
    await loop.leave(sequence);
    step.open();
    await running.ended;
    expect(engine.steps).toEqual([[0], [0]]);
    expect(engine.read(slot.index, 2)).toEqual([3, 4]);
  });

  test('the loop reports once that it is idle, after the last sequence', async () => {
    const engine = new FakeEngine(2, 32);
    let idle = 0;
    const loop = new DecodeLoop(engine, () => idle++);
    const readers = [
      { prompt: [1], maxTokens: 3 },
      { prompt: [2], maxTokens: 6 },
    ].map((wanted) => join(loop, fill(engine, wanted) as KvSlot, wanted));
    await Promise.all(readers.map(({ ended }) => ended));
    expect(idle).toBe(1);
    const again = { prompt: [3], maxTokens: 2 };
    readers[0]?.slot.release();
    await join(loop, fill(engine, again) as KvSlot, again).ended;
    expect(idle).toBe(2);
  });
});

describe('failures', () => {
  test('a failed step ends the sequences of its batch, and those that joined meanwhile or later go on', async () => {
    const engine = new FakeEngine(3, 32);
    const step = gate();
    let steps = 0;
    engine.beforeStep = async () => {
      if (++steps > 1) return;
      await step.opened;
      throw new Error('out of memory');
    };
    const loop = new DecodeLoop(engine);
    const wanted = { prompt: [7, 8], maxTokens: 6 };
    const victim = join(loop, fill(engine, wanted) as KvSlot, wanted);
    const meanwhile = join(loop, fill(engine, wanted) as KvSlot, wanted);
    step.open();
    await victim.ended;
    expect(victim.error).toMatchObject({ message: 'out of memory' });
    await meanwhile.ended;
    expect(meanwhile.tokens).toEqual(alone(meanwhile).tokens);
    const later = join(loop, fill(engine, wanted) as KvSlot, wanted);
    await later.ended;
    expect(later.tokens).toEqual(alone(later).tokens);
  });

  test('a sequence whose sampling fails is the only one that fails', async () => {
    const engine = new FakeEngine(2, 32);
    const loop = new DecodeLoop(engine);
    const wanted = { prompt: [7, 8], maxTokens: 6 };
    const slot = fill(engine, wanted) as KvSlot;
    const bad = loop.join({
      slot,
      positions: 2,
      firstToken: 1,
      maxTokens: 6,
      sampling: { ...GREEDY, logitBias: new Map([[99_999, 1]]) },
    });
    const good = join(loop, fill(engine, wanted) as KvSlot, wanted);
    await expect(bad.steps.toArray()).rejects.toThrowError(expect.objectContaining({ code: 'invalid_request' }));
    await good.ended;
    expect(good.tokens).toEqual(alone(good).tokens);
  });
});

test('a consumer that does not read delays no other sequence and finds all its tokens later', async () => {
  const engine = new FakeEngine(2, 300);
  const loop = new DecodeLoop(engine);
  const slow = { prompt: [11], maxTokens: 200 };
  const slot = fill(engine, slow) as KvSlot;
  const firstToken = nextToken(slow.prompt);
  const sequence = loop.join({ slot, sampling: GREEDY, positions: 1, firstToken, maxTokens: 200 });
  const quick = { prompt: [12], maxTokens: 250 };
  const reader = join(loop, fill(engine, quick) as KvSlot, quick);
  await reader.ended;
  expect(reader.tokens).toEqual(alone(reader).tokens);
  const steps: DecodeStep[] = await sequence.steps.toArray();
  expect(steps.flatMap(({ tokens }) => tokens.map(({ id }) => id))).toEqual(
    continuation(slow.prompt, 200).tokens.slice(1),
  );
  expect(steps.map(({ finishReason }) => finishReason)).toEqual([...new Array(198).fill(undefined), 'length']);
});

test('a stop id is the reason to finish even when it is the last token allowed', () => {
  const sampling = { ...GREEDY, stopTokenIds: [4, 5] };
  expect(finishOf(5, 3, 9, sampling)).toBe('stop');
  expect(finishOf(5, 9, 9, sampling)).toBe('stop');
  expect(finishOf(6, 9, 9, sampling)).toBe('length');
  expect(finishOf(6, 8, 9, sampling)).toBeUndefined();
});

describe('an engine that picks tokens itself', () => {
  test('picks while all sequences take the likeliest token, and gives logits while one does not', async () => {
    const engine = new FakeEngine(2, 32);
    engine.picksTokens = true;
    const loop = new DecodeLoop(engine);
    const wanted = { prompt: [1], maxTokens: 6 };
    const greedy = join(loop, fill(engine, wanted) as KvSlot, wanted);
    const slot = fill(engine, { prompt: [2], maxTokens: 3 }) as KvSlot;
    const sampling = { ...GREEDY, logprobs: 0 };
    const firstToken = nextToken([2]);
    const other = loop.join({ slot, sampling, positions: 1, firstToken, maxTokens: 3 });
    const tokens = (await other.steps.toArray()).flatMap((step: DecodeStep) => step.tokens);
    await greedy.ended;
    expect(greedy.tokens).toEqual(alone(greedy).tokens);
    expect(tokens.map(({ id }) => id)).toEqual(continuation([2], 3).tokens.slice(1));
    for (const { logprob } of tokens) expect(logprob).toBeLessThan(0);
    // The first step began before the second sequence joined; then two steps with logprobs, then two without.
    expect([engine.steps.length, engine.picks]).toEqual([5, 3]);
  });

  test('a sequence whose token the engine does not find fails alone', async () => {
    const engine = new FakeEngine(2, 32);
    engine.picksTokens = true;
    const pick = engine.pick.bind(engine);
    engine.pick = async (ids, lengths, first) =>
      (await pick(ids, lengths, first)).map((id, row) => ((first ?? 0) + row === 0 ? NO_CHOICE : id));
    const loop = new DecodeLoop(engine);
    const wanted = { prompt: [1], maxTokens: 4 };
    const step = gate();
    engine.beforeStep = () => step.opened;
    const failing = loop.join({
      slot: fill(engine, wanted) as KvSlot,
      sampling: GREEDY,
      positions: 1,
      firstToken: 1,
      maxTokens: 4,
    });
    const sound = join(loop, fill(engine, wanted) as KvSlot, wanted);
    step.open();
    await expect(failing.steps.toArray()).rejects.toMatchObject({ code: 'runtime_failed' });
    await sound.ended;
    expect(sound.tokens).toEqual(alone(sound).tokens);
  });
});
