import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { candidateBlocks, drawHole, holeAt, MOST_LINES } from '../../../training/dataset/holes.ts';
import { RandomStream } from '../../../training/dataset/random.ts';

const line = fc.oneof(
  fc.constant(''),
  fc.constant('   '),
  fc.constant('}'),
  fc.stringMatching(/^ {0,8}[a-z_ =]{8,40}$/),
);
const file = fc.array(line, { minLength: 20, maxLength: 120, size: 'max' });

describe('holes', () => {
  test('a hole begins in its block, has as many lines with text as it says, and ends with one', () => {
    let holes = 0;
    fc.assert(
      fc.property(file, fc.nat(), fc.double({ min: 0.1, max: 9, noNaN: true }), (lines, seed, mean) => {
        const random = new RandomStream(seed, 'file');
        for (const block of candidateBlocks(lines, (i) => i % 3 > 0)) {
          for (const start of block) {
            expect(start % 3).toBeGreaterThan(0);
            expect(lines.slice(0, start).filter((each) => each.trim() !== '').length).toBeGreaterThanOrEqual(5);
            expect(lines[start]!.trim().length).toBeGreaterThanOrEqual(8);
          }
          const hole = drawHole(lines, block, mean, random);
          if (!hole) continue;
          holes++;
          expect(block).toContain(hole.start);
          const inside = lines.slice(hole.start, hole.end);
          expect(inside.filter((each) => each.trim() !== '')).toHaveLength(hole.lines);
          expect(hole.lines).toBeGreaterThanOrEqual(1);
          expect(hole.lines).toBeLessThanOrEqual(MOST_LINES);
          expect(inside.at(-1)!.trim()).not.toBe('');
        }
      }),
    );
    expect(holes).toBeGreaterThan(100);
  });

  test('no line lies in two blocks', () => {
    fc.assert(
      fc.property(file, (lines) => {
        const starts = candidateBlocks(lines, () => true).flat();
        expect(new Set(starts).size).toBe(starts.length);
      }),
    );
  });

  test('a hole that the file is too short for, or that is too long, is none', () => {
    expect(holeAt(['one line', 'another line', ''], 1, 2)).toBeUndefined();
    expect(holeAt(['x'.repeat(1_200)], 0, 1)).toBeUndefined();
    expect(holeAt(['one line', '', 'another line'], 0, 2)).toEqual({ start: 0, end: 3, lines: 2 });
  });
});

describe('random streams', () => {
  test('Poisson numbers have the mean and the variance that they are asked for', () => {
    const random = new RandomStream(5, 'poisson');
    const drawn = Array.from({ length: 20_000 }, () => random.poisson(3));
    const mean = drawn.reduce((sum, each) => sum + each, 0) / drawn.length;
    const variance = drawn.reduce((sum, each) => sum + (each - mean) ** 2, 0) / drawn.length;
    expect(mean).toBeCloseTo(3, 1);
    expect(variance).toBeCloseTo(3, 0);
  });

  test('a stream depends on the seed and the name alone, and no two numbers of it repeat', () => {
    const take = (seed: number, name: string) => {
      const random = new RandomStream(seed, name);
      return Array.from({ length: 9 }, () => random.uniform());
    };
    expect(take(1, 'a')).toEqual(take(1, 'a'));
    expect(take(2, 'a')).not.toEqual(take(1, 'a'));
    expect(take(1, 'b')).not.toEqual(take(1, 'a'));
    expect(new Set(take(1, 'a')).size).toBe(9);
  });
});
