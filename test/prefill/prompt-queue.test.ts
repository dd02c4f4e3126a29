/** The queue of waiting prompts: its bound and its order. */
import fc from 'fast-check';
import { beforeEach, describe, expect, test } from 'vitest';
import { metrics } from '../../services/lib/process/metrics.ts';
import type { Queued, QueueOrder } from '../../services/lib/request/queue-order.ts';
import { PromptQueue } from '../../services/prefill/prompt-queue.ts';

const gauges = async () => ({
  prompts: (await metrics.waiting.get()).values[0]?.value,
  tokens: (await metrics.waitingTokens.get()).values[0]?.value,
});

describe('PromptQueue', () => {
  let queue: PromptQueue<Queued & { readonly name: string }>;
  beforeEach(() => {
    queue = new PromptQueue(100);
  });
  const job = (name: string, tokens: number) => ({ name, tokens, queuedAtMs: performance.now() });
  const take = () => {
    const { first } = queue;
    if (first) queue.remove(first);
    return first?.name;
  };

  test('prompts leave the queue in order of arrival, and the gauges follow', async () => {
    queue.add(job('a', 40));
    queue.add(job('b', 60));
    expect(queue.length).toBe(2);
    expect(queue.tokens).toBe(100);
    expect(await gauges()).toEqual({ prompts: 2, tokens: 100 });
    expect(take()).toBe('a');
    expect(take()).toBe('b');
    expect(take()).toBeUndefined();
    expect(await gauges()).toEqual({ prompts: 0, tokens: 0 });
  });

  test('the queue is bounded by tokens, exactly', () => {
    queue.add(job('a', 60));
    expect(() => queue.add(job('b', 41))).toThrowError(
      expect.objectContaining({ code: 'saturated', message: expect.stringContaining('--queue-tokens 100') }),
    );
    expect(queue.tokens).toBe(60);
    queue.add(job('c', 40));
    expect(() => queue.add(job('d', 1))).toThrowError(expect.objectContaining({ code: 'saturated' }));
  });

  test('an empty queue accepts one prompt of any length', () => {
    queue.add(job('long', 1000));
    expect(() => queue.add(job('b', 1))).toThrowError(expect.objectContaining({ code: 'saturated' }));
  });

  test('Retry-After is the time that the backlog takes at the measured rate', () => {
    queue.add(job('a', 100));
    const retryAfter = () => {
      try {
        queue.add(job('b', 1));
      } catch (error) {
        return (error as { retryAfterSeconds?: number }).retryAfterSeconds;
      }
    };
    expect(retryAfter()).toBe(1); // nothing measured yet
    queue.measured(200, 10);
    expect(queue.rate).toBe(20);
    expect(retryAfter()).toBe(5);
    queue.measured(1200, 10); // smoothed: 0.8 x 20 + 0.2 x 120
    expect(queue.rate).toBeCloseTo(40);
    expect(retryAfter()).toBe(3);
    queue.measured(1, 10); // a prompt of which all but one token was reused says nothing
    expect(queue.rate).toBeCloseTo(40);
    queue.measured(1e9, 1);
    expect(retryAfter()).toBe(1); // never less than a second
  });

  test('a prompt that is removed makes room for others', () => {
    const b = job('b', 30);
    queue.add(job('a', 40));
    queue.add(b);
    queue.add(job('c', 30));
    expect(queue.remove(b)).toBe(true);
    expect(queue.remove(b)).toBe(false);
    expect(queue.tokens).toBe(70);
    queue.add(job('d', 30));
    expect([take(), take(), take()]).toEqual(['a', 'c', 'd']);
  });
});

describe('shortest first', () => {
  /** Tokens by which waiting moves a prompt ahead of later ones (AGING_TOKENS_PER_SECOND). */
  const tokensWaited = (ms: number) => (ms / 1000) * 500;
  const arrival = fc.record({ tokens: fc.integer({ min: 1, max: 5000 }), afterMs: fc.nat(3000) });
  const arrivals = fc.array(arrival, { minLength: 1, maxLength: 30 }).map((gaps) => {
    let queuedAtMs = 1000;
    return gaps.map(({ tokens, afterMs }, name) => {
      queuedAtMs += afterMs;
      return { name, tokens, queuedAtMs };
    });
  });

  /** Serves all, at most one every `eachMs`. Returns their names in the order of serving. */
  function serve(jobs: readonly (Queued & { readonly name: number })[], order: QueueOrder, eachMs: number) {
    const coming = [...jobs];
    const waiting = new PromptQueue<(typeof jobs)[number]>(Number.POSITIVE_INFINITY, order);
    const served: { name: number; atMs: number }[] = [];
    for (let nowMs = 0; coming.length + waiting.length > 0; nowMs += eachMs) {
      if (waiting.length === 0) nowMs = Math.max(nowMs, coming[0]?.queuedAtMs ?? 0);
      while (coming[0] && coming[0].queuedAtMs <= nowMs) waiting.add(coming.shift() as (typeof jobs)[number]);
      const next = waiting.first as (typeof jobs)[number];
      waiting.remove(next);
      served.push({ name: next.name, atMs: nowMs });
    }
    return served;
  }

  test('no prompt is next when none waits', () => {
    expect(new PromptQueue(100, 'fifo').first).toBeUndefined();
    expect(new PromptQueue(100, 'shortest-first').first).toBeUndefined();
  });

  test('the shortest of the prompts that came together is next, and the first of equal ones', () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 99 }), { minLength: 1 }), (lengths) => {
        const waiting = lengths.map((tokens) => ({ tokens, queuedAtMs: 1000 }));
        const queue = new PromptQueue<Queued>(Number.POSITIVE_INFINITY, 'shortest-first');
        for (const job of waiting) queue.add(job);
        expect(queue.first).toBe(waiting[lengths.indexOf(Math.min(...lengths))]);
      }),
    );
  });

  test('no prompt starves: once its waiting outweighs its length, no later prompt overtakes it', () => {
    fc.assert(
      fc.property(arrivals, fc.integer({ min: 1, max: 4000 }), (jobs, eachMs) => {
        const served = serve(jobs, 'shortest-first', eachMs);
        expect(served.map(({ name }) => name).sort((a, b) => a - b)).toEqual(jobs.map(({ name }) => name));
        const turn = new Map(served.map(({ name }, i) => [name, i]));
        for (const early of jobs) {
          for (const late of jobs.slice(early.name + 1)) {
            const ahead = tokensWaited(late.queuedAtMs - early.queuedAtMs) + late.tokens - early.tokens;
            if (ahead > 1e-6) expect(turn.get(early.name)).toBeLessThan(turn.get(late.name) as number);
          }
        }
      }),
    );
  });

  test('a stream of short prompts that fills the worker delays a long one by 4 s at most', () => {
    const short = Array.from({ length: 1000 }, (_, i) => ({ name: i + 1, tokens: 1, queuedAtMs: 1000 + i * 10 }));
    const served = serve([{ name: 0, tokens: 2000, queuedAtMs: 1000 }, ...short], 'shortest-first', 10);
    const at = served.find(({ name }) => name === 0)?.atMs as number;
    expect(at).toBeGreaterThan(1000 + 3900);
    expect(at).toBeLessThanOrEqual(1000 + 4010);
  });

  test('with fifo prompts are served in order of arrival, whatever their lengths', () => {
    fc.assert(
      fc.property(arrivals, fc.integer({ min: 1, max: 4000 }), (jobs, eachMs) => {
        expect(serve(jobs, 'fifo', eachMs).map(({ name }) => name)).toEqual(jobs.map(({ name }) => name));
      }),
    );
  });

  test('a shortest-first queue hands out its prompts in that order', () => {
    const queue = new PromptQueue<Queued>(1000, 'shortest-first');
    const now = performance.now();
    const [long, short, old] = [
      { tokens: 300, queuedAtMs: now },
      { tokens: 20, queuedAtMs: now },
      { tokens: 400, queuedAtMs: now - 10_000 },
    ] as const;
    const out: Queued[] = [];
    for (const job of [long, short, old]) queue.add(job);
    for (let next = queue.first; next; next = queue.first) {
      out.push(next);
      queue.remove(next);
    }
    expect(out).toEqual([old, short, long]);
  });
});
