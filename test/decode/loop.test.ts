/** Continuous batching: each sequence gets what it would get alone, whoever else comes and goes. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { DecodeLoop, type DecodeStep, finishOf, type Sequence } from '../../services/decode/loop.ts';
import type { KvSlot } from '../../services/lib/kv/pool.ts';
import { type FinishReason, GREEDY } from '../../services/lib/request/sequence.ts';
import { continuation, FakeEngine, gate, nextToken, settle } from '../fake-engine.ts';

/** A consumer of one sequence. */
interface Reader {
  readonly prompt: readonly number[];
  readonly maxTokens: number;
  readonly stopTokenIds: readonly number[];
  readonly slot: KvSlot;
  readonly sequence: Sequence;
  /** First token included. */
  readonly tokens: number[];
  finishReason: FinishReason | undefined;
  error: unknown;
  /** Rejects never. */
  readonly ended: Promise<void>;
}

interface Wanted {
  readonly prompt: readonly number[];
  readonly maxTokens: number;
  readonly stopTokenIds?: readonly number[];
}

/** Reserves a slot and fills it, as a handoff does: from here on it rides along. */
function fill(engine: FakeEngine, { prompt }: Wanted): KvSlot | undefined {
  const slot = engine.pool.reserve();
  if (slot) engine.write(slot.index, 0, prompt);
  return slot;
}

function join(engine: FakeEngine, loop: DecodeLoop, slot: KvSlot, wanted: Wanted): Reader {
  const { prompt, maxTokens, stopTokenIds = [] } = wanted;
  const firstToken = nextToken(prompt);
  const sequence = loop.join({
    slot,
    sampling: { ...GREEDY, stopTokenIds },
    positions: prompt.length,
    firstToken,
    maxTokens,
    commit: () => engine.write(slot.index, 0, prompt.slice(0, 1)),
  });
  const reader: Reader = {
    ...{ prompt, maxTokens, stopTokenIds, slot, sequence },
    tokens: [firstToken],
    finishReason: undefined,
    error: undefined,
    ended: read(),
  };
  async function read(): Promise<void> {
    try {
      for await (const step of sequence.steps as AsyncIterable<DecodeStep>) {
        reader.tokens.push(...step.tokens.map(({ id }) => id));
        reader.finishReason = step.finishReason;
      }
    } catch (error) {
      reader.error = error;
    }
  }
  return reader;
}

const alone = (reader: Reader) => continuation(reader.prompt, reader.maxTokens, reader.stopTokenIds);

describe('batched = alone', () => {
  const wanted = fc.record({
    prompt: fc.array(fc.nat(28), { minLength: 1, maxLength: 6 }),
    maxTokens: fc.integer({ min: 2, max: 12 }),
    stopTokenIds: fc.subarray([1, 5, 9, 13]),
  });
  const action = fc.oneof(
    { weight: 5, arbitrary: fc.constant({ do: 'step' } as const) },
    { weight: 3, arbitrary: fc.record({ do: fc.constant('fill' as const), wanted }) },
    { weight: 3, arbitrary: fc.constant({ do: 'join' } as const) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('leave' as const), which: fc.nat(9) }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('abort' as const), which: fc.nat(9) }) },
    { weight: 1, arbitrary: fc.constant({ do: 'fail' } as const) },
  );

  test('over random joins, leaves, aborts and failing steps', async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 1, max: 4 }), fc.array(action, { maxLength: 60 }), async (slots, actions) => {
        const engine = new FakeEngine(slots, 32);
        const active = new Set<number>();
        let waiting: (() => void) | undefined;
        let failNext = false;
        engine.beforeStep = async (stepped) => {
          expect(stepped.every((slot) => active.has(slot))).toBe(true);
          await new Promise<void>((resolve) => {
            waiting = resolve;
          });
          if (failNext) {
            failNext = false;
            throw new Error('the step failed');
          }
        };
        let idle = 0;
        const loop = new DecodeLoop(engine, () => idle++);
        const step = async () => {
          waiting?.();
          waiting = undefined;
          await settle();
        };

        const filled: { slot: KvSlot; wanted: Wanted }[] = [];
        const running: Reader[] = [];
        const left: Reader[] = [];
        const leaving: Promise<void>[] = [];
        // As the decode service does: the slot goes back when the sequence is out of the batch.
        const leave = async (reader: Reader) => {
          await loop.leave(reader.sequence);
          active.delete(reader.slot.index);
          reader.slot.release();
        };
        const take = (which: number) => running.splice(which % running.length, 1)[0] as Reader;
        const everyone: Reader[] = [];

        for (const action of actions) {
          if (action.do === 'step') await step();
          else if (action.do === 'fail') {
            failNext = waiting !== undefined;
            await step();
          } else if (action.do === 'fill') {
            const { prompt, maxTokens, stopTokenIds } = action.wanted;
            // A sequence that ends with its first token never joins.
            if (finishOf(nextToken(prompt), 1, maxTokens, { ...GREEDY, stopTokenIds })) continue;
            const slot = fill(engine, action.wanted);
            if (slot) filled.push({ slot, wanted: action.wanted });
          } else if (action.do === 'join') {
            const next = filled.shift();
            if (next === undefined) continue;
            active.add(next.slot.index);
            const reader = join(engine, loop, next.slot, next.wanted);
            running.push(reader);
            everyone.push(reader);
            void reader.ended.then(() => {
              if (running.includes(reader)) leaving.push(leave(take(running.indexOf(reader))));
            });
            await settle();
          } else if (running.length > 0) {
            const reader = take(action.which);
            left.push(reader);
            if (action.do === 'abort') reader.sequence.steps.destroy(new Error('aborted'));
            leaving.push(leave(reader));
          }
        }
        while (waiting) await step();
        await Promise.all(leaving);
        for (const { slot } of filled) slot.release();

        expect(running).toEqual([]);
        engine.pool.assertConserved(0);
        expect(idle > 0).toBe(everyone.length > 0);
        for (const reader of everyone) {
          const { tokens, finishReason } = alone(reader);
          if (reader.finishReason !== undefined) {
            expect(reader.tokens).toEqual(tokens);
            expect(reader.finishReason).toBe(finishReason);
          } else {
            expect(reader.tokens).toEqual(tokens.slice(0, reader.tokens.length));
            const gaveUp = left.includes(reader);
            const failed = reader.error instanceof Error && reader.error.message === 'the step failed';
            expect(gaveUp || failed).toBe(true);
          }
        }
      }),
      { numRuns: 200 },
    );
  });
});

describe('joining and leaving', () => {
  test('a sequence that joins during a step takes part in the next one', async () => {
    const engine = new FakeEngine(2, 32);
    const first = gate();
    engine.beforeStep = () => first.opened;
    const loop = new DecodeLoop(engine);
    const a = join(engine, loop, fill(engine, { prompt: [1], maxTokens: 4 }) as KvSlot, { prompt: [1], maxTokens: 4 });
    const b = join(engine, loop, fill(engine, { prompt: [2], maxTokens: 4 }) as KvSlot, { prompt: [2], maxTokens: 4 });
    first.open();
    await Promise.all([a.ended, b.ended]);
    expect(engine.steps).toEqual([[0], [0, 1], [0, 1], [1]]);
    expect(a.tokens).toEqual(alone(a).tokens);
    expect(b.tokens).toEqual(alone(b).tokens);
  });

  test('leave resolves only when the step under way is over', async () => {
    const engine = new FakeEngine(1, 32);
    const step = gate();
    engine.beforeStep = () => step.opened;
    const loop = new DecodeLoop(engine);
    const wanted = { prompt: [3, 4], maxTokens: 20 };
    const reader = join(engine, loop, fill(engine, wanted) as KvSlot, wanted);
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

  test('a sequence that leaves before it took part in a step is never committed', async () => {
    const engine = new FakeEngine(2, 32);
    const step = gate();
    engine.beforeStep = () => step.opened;
    const loop = new DecodeLoop(engine);
    const wanted = { prompt: [3, 4], maxTokens: 3 };
    const running = join(engine, loop, fill(engine, wanted) as KvSlot, wanted);
    let commits = 0;
    const slot = fill(engine, wanted) as KvSlot;
    const sequence = loop.join({
      ...{ slot, sampling: GREEDY, positions: 2, firstToken: 1, maxTokens: 9 },
      commit: () => commits++,
    });
    await loop.leave(sequence);
    step.open();
    await running.ended;
    expect(commits).toBe(0);
    expect(engine.steps).toEqual([[0], [0]]);
  });

  test('a commit that throws fails its own sequence only', async () => {
    const engine = new FakeEngine(2, 32);
    const step = gate();
    engine.beforeStep = () => step.opened;
    const loop = new DecodeLoop(engine);
    const wanted = { prompt: [5], maxTokens: 5 };
    const good = join(engine, loop, fill(engine, wanted) as KvSlot, wanted);
    const slot = fill(engine, wanted) as KvSlot;
    const bad = loop.join({
      ...{ slot, sampling: GREEDY, positions: 1, firstToken: 1, maxTokens: 5 },
      commit: () => {
        throw new Error('not all of it came');
      },
    });
    step.open();
    await expect(bad.steps.toArray()).rejects.toThrowError('not all of it came');
    await loop.leave(bad);
    await good.ended;
    expect(good.tokens).toEqual(alone(good).tokens);
  });

  test('is idle once, after the last sequence', async () => {
    const engine = new FakeEngine(2, 32);
    let idle = 0;
    const loop = new DecodeLoop(engine, () => idle++);
    const readers = [
      { prompt: [1], maxTokens: 3 },
      { prompt: [2], maxTokens: 6 },
    ].map((wanted) => join(engine, loop, fill(engine, wanted) as KvSlot, wanted));
    await Promise.all(readers.map(({ ended }) => ended));
    expect(idle).toBe(1);
    const again = { prompt: [3], maxTokens: 2 };
    readers[0]?.slot.release();
    await join(engine, loop, fill(engine, again) as KvSlot, again).ended;
    expect(idle).toBe(2);
  });
});

describe('failures', () => {
  test('a failed step ends the sequences of its batch; who joined meanwhile and later goes on', async () => {
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
    const victim = join(engine, loop, fill(engine, wanted) as KvSlot, wanted);
    const meanwhile = join(engine, loop, fill(engine, wanted) as KvSlot, wanted);
    step.open();
    await victim.ended;
    expect(victim.error).toMatchObject({ message: 'out of memory' });
    await meanwhile.ended;
    expect(meanwhile.tokens).toEqual(alone(meanwhile).tokens);
    const later = join(engine, loop, fill(engine, wanted) as KvSlot, wanted);
    await later.ended;
    expect(later.tokens).toEqual(alone(later).tokens);
  });

  test('a sequence that cannot be sampled fails alone', async () => {
    const engine = new FakeEngine(2, 32);
    const loop = new DecodeLoop(engine);
    const wanted = { prompt: [7, 8], maxTokens: 6 };
    const slot = fill(engine, wanted) as KvSlot;
    const bad = loop.join({
      ...{ slot, positions: 2, firstToken: 1, maxTokens: 6, commit: () => {} },
      sampling: { ...GREEDY, logitBias: new Map([[99_999, 1]]) },
    });
    const good = join(engine, loop, fill(engine, wanted) as KvSlot, wanted);
    await expect(bad.steps.toArray()).rejects.toThrowError(expect.objectContaining({ code: 'invalid_request' }));
    await good.ended;
    expect(good.tokens).toEqual(alone(good).tokens);
  });
});

test('a consumer that reads nothing holds nobody up, and finds everything later', async () => {
  const engine = new FakeEngine(2, 300);
  const loop = new DecodeLoop(engine);
  const slow = { prompt: [11], maxTokens: 200 };
  const slot = fill(engine, slow) as KvSlot;
  const sequence = loop.join({
    ...{ slot, sampling: GREEDY, positions: 1, firstToken: nextToken(slow.prompt), maxTokens: 200 },
    commit: () => engine.write(slot.index, 0, slow.prompt),
  });
  const quick = { prompt: [12], maxTokens: 250 };
  const reader = join(engine, loop, fill(engine, quick) as KvSlot, quick);
  await reader.ended;
  expect(reader.tokens).toEqual(alone(reader).tokens);
  const steps: DecodeStep[] = await sequence.steps.toArray();
  expect(steps.flatMap(({ tokens }) => tokens.map(({ id }) => id))).toEqual(
    continuation(slow.prompt, 200).tokens.slice(1),
  );
  expect(steps.map(({ finishReason }) => finishReason)).toEqual([...new Array(198).fill(undefined), 'length']);
});

test('a stop id ends before the limit does, also as the last token allowed', () => {
  const sampling = { ...GREEDY, stopTokenIds: [4, 5] };
  expect(finishOf(5, 3, 9, sampling)).toBe('stop');
  expect(finishOf(5, 9, 9, sampling)).toBe('stop');
  expect(finishOf(6, 9, 9, sampling)).toBe('length');
  expect(finishOf(6, 8, 9, sampling)).toBeUndefined();
});
