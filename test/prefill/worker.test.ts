/** Scheduling and computing prompts: their order, their chunks, and callers that hang up. */
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { PrefixCache } from '../../services/lib/kv/prefix.ts';
import { createLogger } from '../../services/lib/process/log.ts';
import { metrics } from '../../services/lib/process/metrics.ts';
import { cacheSaltOf } from '../../services/lib/request/cache-salt.ts';
import { GREEDY } from '../../services/lib/request/next-token.ts';
import { QUEUE_ORDERS, type QueueOrder } from '../../services/lib/request/queue-order.ts';
import { NO_SOFT_TOKENS, type TokenPrompt } from '../../services/lib/request/token-prompt.ts';
import { LeaseTable } from '../../services/prefill/leases.ts';
import type { PrefillJob } from '../../services/prefill/prompt-computation.ts';
import { PromptQueue } from '../../services/prefill/prompt-queue.ts';
import { PrefillWorker, type QueuedJob } from '../../services/prefill/worker.ts';
import { FakeEngine, gate, HIDDEN, nextToken, settle, tokensOf, VOCAB } from '../support/fake-engine.ts';

const NEVER = new AbortController().signal;

let engine: FakeEngine;
let queue: PromptQueue<QueuedJob>;
let leases: LeaseTable;
let worker: PrefillWorker;
let engineContended: boolean;

/** Starts a worker. @param chunkTokens tokens of its chunks. */
function start(chunkTokens: number, slots = 2, capacity = 64, order: QueueOrder = 'fifo'): void {
  engine = new FakeEngine(slots, capacity);
  queue = new PromptQueue<QueuedJob>(1000, order);
  const prefixes = new PrefixCache(engine.pool);
  leases = new LeaseTable(engine.pool, prefixes, 60_000);
  engineContended = false;
  const options = {
    chunkTokens: () => chunkTokens,
    onIdle: () => engine.pool.assertConserved(leases.size),
    engineContended: () => engineContended,
  };
  worker = new PrefillWorker(engine, queue, leases, prefixes, options, createLogger('test', 'silent'));
}

beforeEach(() => start(4));
afterEach(async () => {
  // After every test nothing waits, computes, or is staged.
  expect(queue.tokens).toBe(0);
  expect(worker.computing).toBe(0);
  expect(leases.size).toBe(0);
  engine.pool.assertConserved(0);
  expect((await metrics.running.get()).values[0]?.value).toBe(0);
  expect((await metrics.stagedBytes.get()).values[0]?.value).toBe(0);
  expect((await metrics.stagedAge.get()).values[0]?.value).toBe(0);
});

const prompt = (ids: readonly number[]): TokenPrompt => ({ ids: Int32Array.from(ids), soft: NO_SOFT_TOKENS });

const job = (ids: readonly number[], change: Partial<PrefillJob> = {}): PrefillJob => ({
  requestId: 'r',
  prompt: prompt(ids),
  choices: [GREEDY],
  readers: 0,
  promptLogprobs: -1,
  promptLogprobsFrom: 0,
  cacheSalt: '',
  signal: new AbortController().signal,
  ...change,
});

/** Holds the engine at its next chunk. */
function holdEngine() {
  const held = gate();
  engine.beforeChunk = () => held.opened;
  return held;
}

test('a tenant that chooses a salt for each prompt keeps no more prompts than one that chooses none', async () => {
  start(64, 8);
  const ask = async (ids: readonly number[], cacheSalt: string) => {
    return (await worker.submit(job(ids, { cacheSalt })).done).cachedTokens;
  };
  const long = (token: number) => new Array(40).fill(token);
  for (let i = 0; i < 2; i++) for (const token of [1, 2, 3]) await ask(long(token), cacheSaltOf('typist', ''));
  for (let i = 0; i < 20; i++) for (let n = 0; n < 2; n++) await ask(long(4), cacheSaltOf('greedy', `${i}`));
  for (const token of [1, 2, 3]) expect(await ask(long(token), cacheSaltOf('typist', ''))).toBe(32);
});

describe('computing', () => {
  test('a prompt that computes counts as running, and one that waits for it does not', async () => {
    const held = holdEngine();
    const first = worker.submit(job([1, 2, 3]));
    const second = worker.submit(job([4, 5, 6]));
    await first.accepted;
    const gauge = async (metric: typeof metrics.running) => (await metric.get()).values[0]?.value;
    expect([await gauge(metrics.running), await gauge(metrics.waiting)]).toEqual([1, 1]);
    held.open();
    await Promise.all([first.done, second.done]);
  });

  test('a prompt is cut into chunks, each with its soft tokens, and its continuation is sampled', async () => {
    const shape = fc.record({
      ids: fc.array(fc.nat(VOCAB - 1), { minLength: 1, maxLength: 40 }),
      chunkTokens: fc.integer({ min: 1, max: 45 }),
      softAt: fc.uniqueArray(fc.nat(39), { maxLength: 10 }),
    });
    await fc.assert(
      fc.asyncProperty(shape, async ({ ids, chunkTokens, softAt }) => {
        start(chunkTokens);
        const positions = Int32Array.from(softAt.filter((position) => position < ids.length)).sort();
        const vectors = Float32Array.from({ length: positions.length * HIDDEN }, (_, i) => i + 1);
        const soft = { positions, vectors };
        const whole: TokenPrompt = { ids: Int32Array.from(ids), soft };
        const { tokens, chunks } = await worker.submit(job(ids, { prompt: whole })).done;
        expect(tokens.map(({ id }) => id)).toEqual([nextToken(tokensOf(whole))]);
        // The last token never has a chunk of its own if the prompt has others.
        expect(chunks).toBe(Math.max(1, Math.ceil((ids.length - 1) / chunkTokens)));
        if (chunkTokens > 1 && ids.length > 1) expect(engine.chunks.at(-1)?.ids.length).toBeGreaterThan(1);
        expect(engine.chunks.flatMap((chunk) => [...chunk.ids])).toEqual(ids);
        const logitRows = engine.chunks.map((chunk) => chunk.logitRows.map((row) => chunk.past + row));
        expect(logitRows).toEqual([...new Array(chunks - 1).fill([]), [ids.length - 1]]);
        engine.pool.assertConserved(0);
      }),
    );
  });

  test('each choice gets a first token from the same logits', async () => {
    const ids = [1, 2, 3];
    const best = nextToken(ids);
    const choices = [GREEDY, { ...GREEDY, logitBias: new Map([[(best + 1) % VOCAB, 5]]) }, GREEDY];
    const { tokens } = await worker.submit(job(ids, { choices })).done;
    expect(tokens.map(({ id }) => id)).toEqual([best, (best + 1) % VOCAB, best]);
  });

  test('prompt logprobs tell how likely each prompt token was', async () => {
    start(3);
    const ids = [4, 5, nextToken([4, 5]), 7, nextToken([4, 5, nextToken([4, 5]), 7])];
    const { promptLogprobs, chunks } = await worker.submit(job(ids, { promptLogprobs: 1 })).done;
    expect(chunks).toBe(2);
    // Fake logits are 1 for the next token, 0 for all others.
    const logTotal = Math.log(Math.E + VOCAB - 1);
    expect(promptLogprobs).toHaveLength(ids.length);
    expect(promptLogprobs[0]).toBeUndefined();
    for (const [position, token] of promptLogprobs.entries()) {
      if (token === undefined) continue;
      const likeliest = nextToken(ids.slice(0, position));
      expect(token.id).toBe(ids[position]);
      expect(token.logprob).toBeCloseTo((ids[position] === likeliest ? 1 : 0) - logTotal);
      expect(token.top).toEqual([{ id: likeliest, logprob: expect.closeTo(1 - logTotal) }]);
    }
  });

  test('chunks are short when prompt logprobs need the logits of all positions', async () => {
    start(1000, 1, 200);
    await worker.submit(job(new Array(130).fill(1), { promptLogprobs: 0 })).done;
    expect(engine.chunks.map(({ logitRows }) => logitRows.length)).toEqual([64, 64, 2]);
  });

  test('logprobs of the end of a prompt need the logits of that end alone', async () => {
    start(1000, 2, 200);
    const ids = Array.from({ length: 130 }, (_, i) => i % 20);
    const whole = await worker.submit(job(ids, { promptLogprobs: 1 })).done;
    const before = engine.chunks.length;
    const end = await worker.submit(job(ids, { promptLogprobs: 1, promptLogprobsFrom: 126 })).done;
    expect(end.promptLogprobs).toEqual([...new Array(126).fill(undefined), ...whole.promptLogprobs.slice(126)]);
    expect(engine.chunks.slice(before).map(({ logitRows }) => logitRows)).toEqual([[125, 126, 127, 128, 129]]);
  });

  test('logprobs may begin at any token, also behind the prompt, whatever is cached and however it is cut', async () => {
    const ids = Array.from({ length: 60 }, (_, i) => i % 20);
    await fc.assert(
      fc.asyncProperty(fc.nat(70), fc.integer({ min: 1, max: 64 }), async (from, chunkTokens) => {
        start(chunkTokens, 2, 80);
        const whole = await worker.submit(job(ids, { promptLogprobs: 0 })).done;
        await worker.submit(job(ids)).done; // from now on its beginning is cached
        const part = await worker.submit(job(ids, { promptLogprobs: 0, promptLogprobsFrom: from })).done;
        const first = Math.min(from, ids.length);
        const expected = whole.promptLogprobs.map((token, i) => (i < first ? undefined : token));
        expect(part.promptLogprobs).toEqual(expected);
        expect(part.tokens).toEqual(whole.tokens);
        expect(part.cachedTokens).toBe(from === 0 ? 0 : Math.min(Math.floor((from - 1) / 16) * 16, 48));
      }),
    );
  });

  test('metrics count the prompt tokens that could have come from the prefix cache and those that did', async () => {
    const counted = async () => {
      const counters = [metrics.prefixQueries, metrics.prefixHits];
      return Promise.all(counters.map(async (each) => (await each.get()).values[0]?.value ?? 0));
    };
    const [queries, hits] = (await counted()) as [number, number];
    const ids = Array.from({ length: 40 }, (_, i) => i % 20);
    for (const change of [{}, {}, { promptLogprobs: 0 }]) await worker.submit(job(ids, change)).done;
    expect(await counted()).toEqual([queries + 80, hits + 32]);
  });

  test('the rate is measured from prompts that are long enough', async () => {
    start(16, 2, 128);
    await worker.submit(job([1, 2, 3])).done;
    expect(queue.rate).toBe(0); // too few to tell
    await worker.submit(job(Array.from({ length: 64 }, (_, i) => i % 20))).done;
    expect(queue.rate).toBeGreaterThan(0);
  });
});

describe('the order of prompts', () => {
  test('prompts are computed one at a time in order of arrival', async () => {
    const order: number[] = [];
    engine.beforeChunk = async ({ ids }) => {
      order.push(ids[0] as number);
      await settle();
    };
    await Promise.all([1, 2, 3, 4, 5].map((id) => worker.submit(job([id])).done));
    expect(order).toEqual([1, 2, 3, 4, 5]);
  });

  test('a prompt waits until a slot is free', async () => {
    start(4, 1);
    const first = worker.submit(job([1], { readers: 1 }));
    const { lease } = await first.accepted;
    await first.done;
    const second = worker.submit(job([2]));
    await settle();
    expect(engine.chunks).toHaveLength(1);
    expect(queue.tokens).toBe(1);
    leases.release(lease.id);
    expect((await second.done).tokens).toEqual([{ id: nextToken([2]) }]);
    expect((await second.accepted).lease.id).not.toBe(lease.id);
  });

  test('no prompt is forgotten that comes at any microtask after the end of another one', async () => {
    for (let turns = 0; turns < 12; turns++) {
      const first = worker.submit(job([1]));
      await first.done;
      for (let turn = 0; turn < turns; turn++) await undefined;
      await worker.submit(job([2])).done;
    }
  });

  test('no prompt is forgotten whose slot is freed at any microtask after the end of another one', async () => {
    for (let turns = 0; turns < 12; turns++) {
      start(4, 1);
      const first = worker.submit(job([1], { readers: 1 }));
      const second = worker.submit(job([2]));
      await first.done;
      for (let turn = 0; turn < turns; turn++) await undefined;
      leases.release((await first.accepted).lease.id);
      await second.done;
    }
  });

  test('the tokens of the prompt that computes are counted', async () => {
    const held = holdEngine();
    const { done } = worker.submit(job([1, 2, 3, 4, 5]));
    expect(worker.computing).toBe(5);
    held.open();
    await done;
  });
});

describe('shortest first', () => {
  const orderOf = () => engine.chunks.map(({ ids, past }) => `${ids[0]}@${past}`);

  test.each([
    ['shortest-first', ['1@0', '2@0', '1@4', '1@8']],
    ['fifo', ['1@0', '1@4', '1@8', '2@0']],
  ] as const)(
    'with %s a short prompt that comes during a long one gets its turn in that order',
    async (order, expected) => {
      start(4, 2, 64, order);
      const held = holdEngine();
      const long = worker.submit(job(new Array(12).fill(1)));
      const short = worker.submit(job([2, 2]));
      held.open();
      await Promise.all([long.done, short.done]);
      expect(orderOf()).toEqual(expected);
    },
  );

  test('with fifo a prompt of another tenant passes a longer rest between two chunks, and one of the same waits', async () => {
    start(4, 4, 64, 'fifo');
    const held = holdEngine();
    const of = (tenant: string) => ({ cacheSalt: cacheSaltOf(tenant, '') });
    const tickets = [
      worker.submit(job(new Array(12).fill(1), of('a'))),
      worker.submit(job([2, 2], of('a'))),
      worker.submit(job(new Array(9).fill(3), of('b'))), // longer than what is left
      worker.submit(job([4, 4, 4], of('b'))),
      worker.submit(job([5, 5], of('b'))),
    ];
    held.open();
    await Promise.all(tickets.map(({ done }) => done));
    expect(orderOf()).toEqual(['1@0', '5@0', '4@0', '1@4', '1@8', '2@0', '3@0', '3@4']);
  });

  test('a long prompt goes on when there is no slot for a shorter one', async () => {
    start(4, 1, 64, 'shortest-first');
    const held = holdEngine();
    const long = worker.submit(job(new Array(12).fill(1)));
    const short = worker.submit(job([2, 2]));
    held.open();
    await Promise.all([long.done, short.done]);
    expect(orderOf()).toEqual(['1@0', '1@4', '1@8', '2@0']);
  });

  test('a long prompt whose caller hangs up during a shorter one is not computed further', async () => {
    start(4, 2, 64, 'shortest-first');
    const caller = new AbortController();
    engine.beforeChunk = ({ ids }) => {
      if (ids[0] === 2) caller.abort(new Error('hung up'));
    };
    const long = worker.submit(job(new Array(12).fill(1), { signal: caller.signal }));
    const short = worker.submit(job([2, 2]));
    await expect(long.done).rejects.toThrowError('hung up');
    await short.done;
    expect(orderOf()).toEqual(['1@0', '2@0']);
  });

  test('every prompt ends with its chunks in order and the continuation it has alone', async () => {
    const coming = fc.record({
      length: fc.integer({ min: 1, max: 40 }),
      /** Chunks of other prompts before this one comes. */
      after: fc.nat(12),
      gone: fc.option(fc.nat(20), { freq: 5 }),
      tenant: fc.constantFrom('a', 'b', 'c'),
    });
    const order = fc.constantFrom(...QUEUE_ORDERS);
    const runs = fc.tuple(fc.integer({ min: 1, max: 4 }), fc.integer({ min: 1, max: 16 }), fc.array(coming), order);
    await fc.assert(
      fc.asyncProperty(runs, async ([slots, chunkTokens, prompts, queueOrder]) => {
        start(chunkTokens, slots, 64, queueOrder);
        const left = prompts.map((each, salt) => ({
          ...each,
          ids: Array.from({ length: each.length }, (_, i) => (i * 5 + salt * 3) % VOCAB),
          caller: new AbortController(),
        }));
        const outcomes: Promise<void>[] = [];
        const next = new Map<number, number>();
        let chunks = 0;
        const come = () => {
          for (const each of left.filter(({ after }) => after <= chunks)) {
            left.splice(left.indexOf(each), 1);
            const { ids, caller, tenant } = each;
            if (caller.signal.aborted) continue;
            const { done } = worker.submit(job(ids, { signal: caller.signal, cacheSalt: cacheSaltOf(tenant, '') }));
            outcomes.push(
              done.then(
                ({ tokens }) => expect(tokens).toEqual([{ id: nextToken(ids) }]),
                (error) => expect(error).toBe(caller.signal.reason),
              ),
            );
          }
        };
        const callers = left.map(({ gone, caller }) => ({ gone, caller }));
        engine.beforeChunk = ({ slot, past, ids }) => {
          // A chunk continues the prompt of its slot, or begins another one within the cached positions.
          expect(past).toBeLessThanOrEqual(next.get(slot) ?? past);
          next.set(slot, past + ids.length);
          chunks++;
          for (const { gone, caller } of callers) if (gone === chunks) caller.abort(new Error('hung up'));
          come();
        };
        while (left.length > 0) {
          come();
          await settle();
          if (worker.computing === 0) chunks++; // nothing computes: time goes on
        }
        await Promise.all(outcomes);
        expect([queue.tokens, worker.computing, leases.size]).toEqual([0, 0, 0]);
        engine.pool.assertConserved(0);
      }),
    );
  });
});

describe('a prompt whose caller hangs up', () => {
  const caller = () => {
    const controller = new AbortController();
    return { signal: controller.signal, hangUp: () => controller.abort(new Error('hung up')) };
  };

  test('a prompt whose caller has hung up before is not submitted', () => {
    const gone = AbortSignal.abort(new Error('hung up'));
    expect(() => worker.submit(job([1], { signal: gone }))).toThrowError('hung up');
  });

  test('a waiting prompt whose caller hangs up leaves the queue at once', async () => {
    const held = holdEngine();
    const running = worker.submit(job([1]));
    const { signal, hangUp } = caller();
    const waiting = worker.submit(job([2], { signal }));
    const next = worker.submit(job([3]));
    hangUp();
    await expect(waiting.accepted).rejects.toThrowError('hung up');
    await expect(waiting.done).rejects.toThrowError('hung up');
    expect(queue.tokens).toBe(1);
    held.open();
    await Promise.all([running.done, next.done]);
    expect(engine.chunks.map(({ ids }) => ids[0])).toEqual([1, 3]);
  });

  test('a computing prompt whose caller hangs up gets no further chunk, and the next prompt is computed', async () => {
    const held = holdEngine();
    const { signal, hangUp } = caller();
    const ticket = worker.submit(job([1, 2, 3, 4, 5, 6, 7, 8], { signal, readers: 1 }));
    const next = worker.submit(job([9]));
    const { lease } = await ticket.accepted;
    hangUp();
    await expect(ticket.done).rejects.toThrowError('hung up');
    await expect(lease.released).rejects.toMatchObject({ code: 'lease_unknown' });
    held.open();
    await next.done;
    expect(engine.chunks.map(({ ids }) => ids[0])).toEqual([1, 9]);
  });

  test('the slot of a chunk that cannot be stopped stays held until nothing writes to it', async () => {
    const held = holdEngine();
    const compute = engine.chunk.bind(engine);
    engine.chunk = (chunk) => compute(chunk); // hears of no abort
    const { signal, hangUp } = caller();
    const ticket = worker.submit(job([1, 2, 3, 4, 5, 6, 7, 8], { signal, readers: 1 }));
    const { lease } = await ticket.accepted;
    hangUp();
    await settle();
    expect(engine.pool.reserved).toBe(1);
    held.open();
    await expect(ticket.done).rejects.toThrowError('hung up');
    await expect(lease.released).rejects.toMatchObject({ code: 'lease_unknown' });
    expect(engine.chunks).toHaveLength(1);
    expect(queue.rate).toBe(0); // nothing was measured
  });

  describe('during a chunk that others can use', () => {
    const PROMPT = Array.from({ length: 70 }, (_, i) => i % VOCAB);

    /** Starts a prompt whose caller hangs up during its first chunk of 32 tokens. */
    async function abandon(elsewhere = false) {
      start(32, 2, 128);
      engineContended = elsewhere;
      const held = holdEngine();
      const { signal, hangUp } = caller();
      const ticket = worker.submit(job(PROMPT, { signal }));
      await ticket.accepted;
      hangUp();
      return { held, ticket };
    }

    const reused = async (ids: readonly number[]) => (await worker.submit(job(ids)).done).cachedTokens;

    test('an abandoned chunk is finished while no prompt waits, and no further one is computed', async () => {
      const { held, ticket } = await abandon();
      held.open();
      await expect(ticket.done).rejects.toThrowError('hung up');
      expect(engine.chunks).toHaveLength(1);
      expect(await reused([...PROMPT, 1])).toBe(32);
    });

    test('an abandoned chunk is finished for a prompt that begins with the same tokens', async () => {
      const { held, ticket } = await abandon();
      const next = reused([...PROMPT.slice(0, 40), 1]);
      held.open();
      await expect(ticket.done).rejects.toThrowError('hung up');
      expect(await next).toBe(32);
    });

    test.each([
      ['begins differently', [5, ...PROMPT]],
      ['has too little in common', [...PROMPT.slice(0, 20), 5, 5, 5]],
      ['has another salt', PROMPT],
    ])('an abandoned chunk is stopped for a prompt that %s', async (why, ids) => {
      const { held, ticket } = await abandon();
      const next = worker.submit(job(ids, { cacheSalt: why === 'has another salt' ? 'x' : '' }));
      await expect(ticket.done).rejects.toThrowError('hung up'); // the engine is held: only the abort ends the chunk
      held.open();
      expect((await next.done).cachedTokens).toBe(0);
    });

    test('an abandoned chunk is stopped when sequences want the engine', async () => {
      const { ticket } = await abandon(true);
      await expect(ticket.done).rejects.toThrowError('hung up');
    });
  });

  test('the lease ends when the caller hangs up while the KV is staged', async () => {
    const { signal, hangUp } = caller();
    const ticket = worker.submit(job([1, 2], { signal, readers: 1 }));
    await ticket.done;
    const { lease } = await ticket.accepted;
    expect(engine.pool.reserved).toBe(1);
    hangUp();
    await expect(lease.released).rejects.toMatchObject({ code: 'lease_unknown' });
  });

  test('nothing happens when the caller hangs up after the end', async () => {
    const { signal, hangUp } = caller();
    const ticket = worker.submit(job([1, 2], { signal }));
    await ticket.done;
    hangUp();
    await (await ticket.accepted).lease.released;
  });

  test('the caller gets the first token even if all readers give up while the prompt computes', async () => {
    const held = holdEngine();
    const ticket = worker.submit(job([1, 2], { readers: 1 }));
    const { lease } = await ticket.accepted;
    leases.release(lease.id);
    held.open();
    expect((await ticket.done).tokens).toEqual([{ id: nextToken([1, 2]) }]);
    await lease.released;
  });
});

test('a chunk that fails fails only its own prompt and its readers', async () => {
  engine.beforeChunk = ({ ids }) => {
    if (ids[0] === 5) throw new Error('the graph broke');
  };
  const broken = worker.submit(job([1, 2, 3, 4, 5, 6], { readers: 1 }));
  const good = worker.submit(job([2]));
  const { lease } = await broken.accepted;
  expect(await lease.beyond(0, NEVER)).toBe(4);
  await expect(lease.beyond(4, NEVER)).rejects.toThrowError('the graph broke');
  await expect(broken.done).rejects.toThrowError('the graph broke');
  expect((await good.done).tokens).toEqual([{ id: nextToken([2]) }]);
});

test('a full queue refuses a prompt', async () => {
  const held = holdEngine();
  const running = worker.submit(job([1]));
  const long = worker.submit(job(new Array(60).fill(1)));
  const many = Array.from({ length: 15 }, () => worker.submit(job(new Array(60).fill(2))));
  expect(() => worker.submit(job(new Array(60).fill(3)))).toThrowError(expect.objectContaining({ code: 'saturated' }));
  held.open();
  await Promise.all([running, long, ...many].map(({ done }) => done));
});
