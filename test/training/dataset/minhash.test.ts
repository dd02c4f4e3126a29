import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { estimate, MinHash, NEARLY_EQUAL, NearCopies, shingles } from '../../../training/dataset/minhash.ts';

/** Two sets of hashes with `both` members in common. */
const sets = fc.record({
  both: fc.integer({ min: 0, max: 300 }),
  a: fc.integer({ min: 1, max: 200 }),
  b: fc.integer({ min: 1, max: 200 }),
  seed: fc.nat(),
});
const member = (set: number, i: number) => Math.imul(set * 1_000 + i + 1, 0x9e3779b1) >>> 0;
const madeSet = (set: number, own: number, both: number) =>
  new Set([
    ...Array.from({ length: both }, (_, i) => member(0, i)),
    ...Array.from({ length: own }, (_, i) => member(set, i)),
  ]);
const text = (words: readonly number[]) => words.map((word) => `w${word}`).join(' ');
const counted = (start: number, count: number) => Array.from({ length: count }, (_, i) => start + i);

describe('MinHash', () => {
  test('the estimate lies within six standard errors of the true Jaccard similarity', () => {
    fc.assert(
      fc.property(sets, ({ both, a, b, seed }) => {
        const minhash = new MinHash(seed);
        const [one, other] = [madeSet(1, a, both), madeSet(2, b, both)];
        const truth = both / (one.size + other.size - both);
        const found = estimate(minhash.signature(one), minhash.signature(other));
        const error = Math.sqrt((truth * (1 - truth)) / 128);
        expect(Math.abs(found - truth)).toBeLessThanOrEqual(6 * error + 1e-9);
      }),
      { numRuns: 200, seed: 1 },
    );
  });

  test('the same seed gives the same signature, and another seed another one', () => {
    const set = madeSet(1, 50, 50);
    expect(new MinHash(3).signature(set)).toEqual(new MinHash(3).signature(set));
    expect(new MinHash(4).signature(set)).not.toEqual(new MinHash(3).signature(set));
  });
});

describe('near copies', () => {
  test('a text that is clearly above the bound is found, and one that is clearly below is not', () => {
    fc.assert(
      fc.property(fc.integer({ min: 100, max: 600 }), fc.integer({ min: 0, max: 400 }), fc.nat(), (same, own, seed) => {
        const [first, second] = [text(counted(0, same)), text([...counted(0, same), ...counted(5_000, own)])];
        const [a, b] = [shingles(first), shingles(second)];
        const common = [...a].filter((shingle) => b.has(shingle)).length;
        const truth = common / (a.size + b.size - common);
        const copies = new NearCopies(seed);
        copies.add(copies.signatureOf(first)!);
        const found = copies.has(copies.signatureOf(second)!);
        if (truth > NEARLY_EQUAL + 0.2) expect(found).toBe(true);
        if (truth < NEARLY_EQUAL - 0.2) expect(found).toBe(false);
      }),
      { numRuns: 150, seed: 2 },
    );
  });

  test('a text of a few words has no signature: boilerplate is not a copy', () => {
    expect(new NearCopies(1).signatureOf('from .core import *')).toBeUndefined();
  });
});
