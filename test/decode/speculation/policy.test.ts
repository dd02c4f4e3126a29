/** How many tokens are proposed: never slower than 0.98 of plain decoding, whatever comes. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { DRAFT_SOURCES } from '../../../services/decode/speculation/draft-index.ts';
import { SpeculationPolicy, WORST_SPEED } from '../../../services/decode/speculation/policy.ts';

/** Times of runs by rows, as measured with 0.5B int4 on two cores. */
const COSTS: Readonly<Record<number, number>> = { 1: 13.7, 2: 15.8, 3: 22, 4: 29, 8: 45 };
const timesOf = (costs: Readonly<Record<number, number>>) => ({
  rows: Object.keys(costs).map(Number),
  costMs: (rows: number) => costs[rows] ?? Infinity,
});

interface Turn {
  readonly source: (typeof DRAFT_SOURCES)[number];
  readonly matched: number;
  readonly length: number;
  /** Tokens of the draft that would be right. */
  readonly right: number;
}

/** Decodes a trace. @returns time spent, and that of as many steps of one token. */
function decode(policy: SpeculationPolicy, costs: Readonly<Record<number, number>>, turns: readonly Turn[]) {
  let [spentMs, plainMs, slowest] = [0, 0, Infinity];
  for (const { source, matched, length, right } of turns) {
    const ids = Array.from({ length }, (_, i) => i);
    const drafts = length === 0 ? 0 : policy.choose({ source, matched, ids });
    expect(drafts).toBeLessThanOrEqual(length);
    const accepted = Math.min(drafts, right);
    if (drafts === 0) policy.stepped();
    else policy.verified({ source, matched }, drafts, accepted, accepted + 1);
    spentMs += costs[drafts + 1]!;
    plainMs += (accepted + 1) * costs[1]!;
    slowest = Math.min(slowest, plainMs / spentMs);
  }
  return { spentMs, plainMs, slowest };
}

const turn = fc.record({
  source: fc.constantFrom(...DRAFT_SOURCES),
  matched: fc.nat(40),
  length: fc.nat(7),
  right: fc.nat(8),
});
const stretch = fc
  .tuple(fc.array(turn, { minLength: 1, maxLength: 5 }), fc.integer({ min: 1, max: 60 }))
  .map(([turns, times]) => Array.from({ length: times }, () => turns).flat());
const costs = fc
  .tuple(fc.integer({ min: 1, max: 100 }), fc.array(fc.integer({ min: 0, max: 400 }), { minLength: 4, maxLength: 4 }))
  .map(([one, more]) => {
    let ms = one;
    const [two, three, four, eight] = more.map((each) => (ms += (each * one) / 100));
    return { 1: one, 2: two!, 3: three!, 4: four!, 8: eight! };
  });

describe('the policy', () => {
  test('is never slower than 0.98 of plain decoding, at no point of any trace and for no costs', () => {
    fc.assert(
      fc.property(costs, fc.array(stretch, { maxLength: 8 }), (table, stretches) => {
        const { slowest } = decode(new SpeculationPolicy(timesOf(table)), table, stretches.flat());
        expect(slowest).toBeGreaterThanOrEqual(WORST_SPEED - 1e-9);
      }),
    );
  });

  test('gives up on a source that is wrong, soon and for long', () => {
    const wrong = { source: 'chunk', matched: 3, length: 7, right: 0 } as const;
    const policy = new SpeculationPolicy(timesOf(COSTS));
    decode(policy, COSTS, new Array<Turn>(400).fill(wrong));
    const { spentMs, plainMs } = decode(policy, COSTS, new Array<Turn>(400).fill(wrong));
    expect(plainMs / spentMs).toBeGreaterThan(0.995);
  });

  test('follows a prediction that is right with the longest draft, at more than twice the speed', () => {
    const right = { source: 'prediction', matched: 20, length: 7, right: 7 } as const;
    const { spentMs, plainMs } = decode(new SpeculationPolicy(timesOf(COSTS)), COSTS, new Array<Turn>(200).fill(right));
    expect(plainMs / spentMs).toBeGreaterThan(2);
  });

  test('proposes one token where the second row is nearly free and acceptance is middling', () => {
    const policy = new SpeculationPolicy(timesOf(COSTS));
    const middling = (i: number): Turn => ({ source: 'prompt', matched: 2, length: 7, right: i % 2 });
    decode(
      policy,
      COSTS,
      Array.from({ length: 300 }, (_, i) => middling(i)),
    );
    expect(policy.choose({ source: 'prompt', matched: 2, ids: [1, 2, 3, 4, 5, 6, 7] })).toBe(1);
  });
});
