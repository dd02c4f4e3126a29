/** Prompts that wait. */
import { beforeEach, describe, expect, test } from 'vitest';
import { metrics } from '../../services/lib/process/metrics.ts';
import { PromptQueue } from '../../services/prefill/queue.ts';

const gauges = async () => ({
  prompts: (await metrics.waiting.get()).values[0]?.value,
  tokens: (await metrics.waitingTokens.get()).values[0]?.value,
});

describe('PromptQueue', () => {
  let queue: PromptQueue<{ readonly tokens: number; readonly name: string }>;
  beforeEach(() => {
    queue = new PromptQueue(100);
  });

  test('first in, first out; gauges follow', async () => {
    queue.add({ name: 'a', tokens: 40 });
    queue.add({ name: 'b', tokens: 60 });
    expect(queue.length).toBe(2);
    expect(queue.tokens).toBe(100);
    expect(await gauges()).toEqual({ prompts: 2, tokens: 100 });
    expect(queue.take()?.name).toBe('a');
    expect(queue.take()?.name).toBe('b');
    expect(queue.take()).toBeUndefined();
    expect(await gauges()).toEqual({ prompts: 0, tokens: 0 });
  });

  test('is bounded by tokens, to the token', () => {
    queue.add({ name: 'a', tokens: 60 });
    expect(() => queue.add({ name: 'b', tokens: 41 })).toThrowError(
      expect.objectContaining({ code: 'saturated', message: expect.stringContaining('--queue-tokens 100') }),
    );
    expect(queue.tokens).toBe(60);
    queue.add({ name: 'c', tokens: 40 });
    expect(() => queue.add({ name: 'd', tokens: 1 })).toThrowError(expect.objectContaining({ code: 'saturated' }));
  });

  test('empty, it takes one prompt of any length', () => {
    queue.add({ name: 'long', tokens: 1000 });
    expect(() => queue.add({ name: 'b', tokens: 1 })).toThrowError(expect.objectContaining({ code: 'saturated' }));
  });

  test('Retry-After is the time that the backlog takes at the measured rate', () => {
    queue.add({ name: 'a', tokens: 100 });
    const retryAfter = () => {
      try {
        queue.add({ name: 'b', tokens: 1 });
      } catch (error) {
        return (error as { retryAfterSeconds?: number }).retryAfterSeconds;
      }
    };
    expect(retryAfter()).toBe(1); // nothing measured yet
    queue.measured(20, 1);
    expect(queue.rate).toBe(20);
    expect(retryAfter()).toBe(5);
    queue.measured(120, 1); // smoothed: 0.8 x 20 + 0.2 x 120
    expect(queue.rate).toBeCloseTo(40);
    expect(retryAfter()).toBe(3);
    queue.measured(1e9, 1);
    expect(retryAfter()).toBe(1); // never less than a second
  });

  test('a prompt that nobody wants any more leaves its place to others', () => {
    const b = { name: 'b', tokens: 30 };
    queue.add({ name: 'a', tokens: 40 });
    queue.add(b);
    queue.add({ name: 'c', tokens: 30 });
    expect(queue.remove(b)).toBe(true);
    expect(queue.remove(b)).toBe(false);
    expect(queue.tokens).toBe(70);
    queue.add({ name: 'd', tokens: 30 });
    expect([queue.take()?.name, queue.take()?.name, queue.take()?.name]).toEqual(['a', 'c', 'd']);
  });
});
