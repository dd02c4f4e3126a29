import { expect, test } from 'vitest';
import { cursorQuery } from '../../../services/lib/rag/search/query.ts';

const queryTokens = (before: string, after: string, lines: number) => cursorQuery(before, after, lines).tokens;

test('a query is the last non-blank lines before the cursor and half as many after it', () => {
  const before = 'a1\na2\n\na3\n   \na4\n';
  const after = '\n\nb1\n\nb2\nb3';
  expect(queryTokens(before, after, 4)).toEqual(['a1', 'a2', 'a3', 'a4', 'b1', 'b2']);
  expect(queryTokens(before, after, 3)).toEqual(['a2', 'a3', 'a4', 'b1']);
  expect(queryTokens(before, after, 1)).toEqual(['a4']);
});

test('the line of the cursor counts', () => {
  expect(queryTokens('x\nreturn self.', 'total()\ny', 2)).toEqual(['x', 'return', 'self', 'total']);
});

test('a query without text has no identifiers', () => {
  expect(queryTokens('', '', 10)).toEqual([]);
  expect(queryTokens('\n \n', '\t', 10)).toEqual([]);
});

test('a query reaches no farther than 16,384 characters', () => {
  const far = `far ${'x'.repeat(16_384)} near`;
  expect(queryTokens(far, '', 10).at(-1)).toBe('near');
  expect(queryTokens(far, '', 10)).not.toContain('far');
});

test('a query recognises a chunk that repeats the text around the cursor', () => {
  const lines = Array.from({ length: 12 }, (_, i) => `line_${i}()`);
  const { repeats } = cursorQuery(lines.slice(0, 6).join('\n'), `\n${lines.slice(6).join('\n')}`, 2);
  expect(repeats(lines.slice(1, 11).join('\n'))).toBe(true);
  expect(repeats(lines.map((line) => `    ${line}`).join('\n'))).toBe(true); // copied to another depth
  expect(repeats([...lines.slice(0, 9), 'other()'].join('\n'))).toBe(false); // 9 of 10 lines are not more than 0.9
  expect(repeats([...lines.slice(0, 11), 'other()'].join('\n'))).toBe(true);
  expect(repeats('other()')).toBe(false);
});
