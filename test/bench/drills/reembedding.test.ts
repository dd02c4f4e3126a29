import { describe, expect, test } from 'vitest';
import { type Round, verdict } from '../../../bench/drills/reembedding.ts';

/** Ten rounds of a hundred requests, in `slower` of which those beside the encoding take `times` as long. */
const rounds = (times: number, slower = 10): Round[] =>
  Array.from({ length: 10 }, (_, round) => {
    const calmMs = Array.from({ length: 100 }, (_, i) => 10 + ((7 * i) % 101) / 10);
    return { calmMs, busyMs: calmMs.map((ms) => (round < slower ? ms * times : ms)) };
  });

describe('what re-embedding costs first tokens', () => {
  test('a rise of p99 within the promise is said with its interval', () => {
    expect(verdict(rounds(1.03), 12_345)).toBe(
      '10000 chunks encoded in 12 s, in 75 % of the time at most; TTFT of 1000 requests meanwhile p50 15.4, p99 20.5 ms, ' +
        'and of as many without p50 14.9, p99 19.9 ms: p99 rose by 3.0 % (interval 3.0 % to 3.0 %)',
    );
  });

  test('a rise that is certainly larger breaks the promise', () => {
    expect(() => verdict(rounds(1.2), 1)).toThrow('p99 rose by 20.0 % (interval 20.0 % to 20.0 %), more than 5.0 %');
  });

  test('a rise that rounds do not agree on is not decided', () => {
    expect(verdict(rounds(1.2, 1), 1)).toMatch(/; not decided by this run$/);
  });
});
