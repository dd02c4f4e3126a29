import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { chunkFile, identifiers } from '../../services/lib/rag/chunk.ts';

const PAPER = { chunkLines: 10, chunkStride: 5 };
const numbered = (lines: number) => Array.from({ length: lines }, (_, i) => `line_${i + 1}`).join('\n');
const ranges = (text: string, chunking = PAPER) =>
  chunkFile('a.py', text, chunking).map(({ startLine, endLine }) => [startLine, endLine]);

describe('chunkFile', () => {
  test.each([
    [1, [[1, 1]]],
    [9, [[1, 9]]],
    [10, [[1, 10]]],
    [
      11,
      [
        [1, 10],
        [6, 11],
      ],
    ],
    [
      15,
      [
        [1, 10],
        [6, 15],
      ],
    ],
    [
      16,
      [
        [1, 10],
        [6, 15],
        [11, 16],
      ],
    ],
    [
      25,
      [
        [1, 10],
        [6, 15],
        [11, 20],
        [16, 25],
      ],
    ],
  ])('%d lines are cut into windows of 10, one every 5', (lines, expected) => {
    expect(ranges(numbered(lines))).toEqual(expected);
  });

  test('blank lines are dropped, and lines keep their numbers in the file', () => {
    const [chunk] = chunkFile('a.py', '\n\nimport os\n   \n\t\n  x = 1\n\n', PAPER);
    expect(chunk).toMatchObject({ path: 'a.py', startLine: 3, endLine: 6, text: 'import os\n  x = 1' });
    expect(chunk?.tokens).toEqual(['import', 'os', 'x', '1']);
  });

  test('a chunk keeps its first 256 identifiers: code does not have more', () => {
    const words = Array.from({ length: 300 }, (_, i) => `w${i}`);
    const [chunk] = chunkFile('a.csv', words.join(' '), PAPER);
    expect(chunk?.tokens).toEqual(words.slice(0, 256));
  });

  test.each(['', '\n', ' \r\n\t\n'])('the text %j gives no chunks', (text) => {
    expect(chunkFile('a.py', text, PAPER)).toEqual([]);
  });

  test('every kind of line end is recognised', () => {
    expect(chunkFile('a.py', 'a\r\nb\rc\nd', PAPER)[0]).toMatchObject({ text: 'a\nb\nc\nd', startLine: 1, endLine: 4 });
  });

  test('the id of a chunk depends on text, path and place, and is the same in every run', () => {
    const id = (path: string, text: string) => chunkFile(path, text, PAPER)[0]?.id;
    expect(id('a.py', 'x')).toMatch(/^[0-9a-f]{64}$/);
    expect(id('a.py', 'x')).toBe(id('a.py', 'x'));
    expect(new Set([id('a.py', 'x'), id('b.py', 'x'), id('a.py', 'y'), id('a.py', '\nx')]).size).toBe(4);
  });

  test('a stride that skips lines is refused', () => {
    expect(() => chunkFile('a.py', 'x', { chunkLines: 5, chunkStride: 6 })).toThrow(
      expect.objectContaining({ code: 'config_invalid' }),
    );
  });

  test('windows cover every non-blank line in order, and none lies inside another', () => {
    const line = fc.constantFrom('', '  ', 'a = 1', '\tdef f(x):', 'é');
    fc.assert(
      fc.property(
        fc.array(line, { maxLength: 60 }),
        fc.integer({ min: 1, max: 12 }),
        fc.integer({ min: 1, max: 12 }),
        (lines, chunkLines, wanted) => {
          const chunkStride = Math.min(wanted, chunkLines);
          const chunks = chunkFile('a.py', lines.join('\n'), { chunkLines, chunkStride });
          const covered = new Set<number>();
          for (const [i, chunk] of chunks.entries()) {
            const inside = lines.slice(chunk.startLine - 1, chunk.endLine).filter((text) => text.trim() !== '');
            expect(chunk.text).toBe(inside.join('\n'));
            expect(inside.length).toBeLessThanOrEqual(chunkLines);
            for (let at = chunk.startLine; at <= chunk.endLine; at++) covered.add(at);
            const previous = chunks[i - 1];
            if (previous) expect(chunk.endLine).toBeGreaterThan(previous.endLine);
          }
          for (const [i, text] of lines.entries()) if (text.trim() !== '') expect(covered).toContain(i + 1);
        },
      ),
    );
  });
});

test('only the start of a huge line is kept, in whole characters, and all other lines are complete', () => {
  const [chunk] = chunkFile('a.py', `before\n${'x'.repeat(4_095)}${'😀'.repeat(1_000_000)}\nafter`, PAPER);
  expect(chunk?.text).toBe(`before\n${'x'.repeat(4_095)}\nafter`);
  expect(chunk).toMatchObject({ startLine: 1, endLine: 3 });
});

test('identifiers are words of any script, case-sensitive, each listed once', () => {
  expect(identifiers('def größe(self, Größe=0x1F): self.größe_2 = "don\'t"')).toEqual([
    'def',
    'größe',
    'self',
    'Größe',
    '0x1F',
    'größe_2',
    'don',
    't',
  ]);
  expect(identifiers('+-*/ ()')).toEqual([]);
});
