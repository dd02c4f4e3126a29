import { expect, test } from 'vitest';
import { queryTokens } from '../../services/lib/rag/query.ts';

test('takes the last non-blank lines before the cursor and half as many after it', () => {
  const before = 'a1\na2\n\na3\n   \na4\n';
  const after = '\n\nb1\n\nb2\nb3';
  expect(queryTokens(before, after, 4)).toEqual(['a1', 'a2', 'a3', 'a4', 'b1', 'b2']);
  expect(queryTokens(before, after, 3)).toEqual(['a2', 'a3', 'a4', 'b1']);
  expect(queryTokens(before, after, 1)).toEqual(['a4']);
});

test('counts the line that the cursor stands in', () => {
  expect(queryTokens('x\nreturn self.', 'total()\ny', 2)).toEqual(['x', 'return', 'self', 'total']);
});

test('has nothing to look for where there is no text', () => {
  expect(queryTokens('', '', 10)).toEqual([]);
  expect(queryTokens('\n \n', '\t', 10)).toEqual([]);
});

test('looks no farther than 16,384 characters', () => {
  const far = `far ${'x'.repeat(16_384)} near`;
  expect(queryTokens(far, '', 10).at(-1)).toBe('near');
  expect(queryTokens(far, '', 10)).not.toContain('far');
});
