/** Rewards of rollouts are those of the authors' code. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { rewardOf } from '../../../training/step/reward.ts';

test.each<[what: string, written: string, target: string, exact: number, similarity: number]>([
  ['equal texts', 'return self.items.pop()', 'return self.items.pop()', 1, 1],
  ['white space at the ends costs edits alone', '    return x\n', 'return x', 1, 2 / 3],
  ['white space within does not count for a match', 'x = foo( a,b )', 'x = foo(a, b)', 1, 11 / 14],
  ['kinds of quotes are one', "name = 'a'", 'name = "a"', 1, 0.8],
  ['camel case is split', 'getItem()', 'get Item()', 1, 0.9],
  ['capitals in a row are not split', 'parseXMLDoc', 'parse XMLDoc', 1, 11 / 12],
  ['a digit before a capital is not split', 'a1B', 'a1 B', 0, 0.75],
  ['an underscore belongs to a word', 'my_var', 'my _ var', 0, 0.75],
  ['one edit of 17 characters', 'return self.item', 'return self.items', 0, 16 / 17],
  ['nothing written', '', 'pass', 0, 0],
  ['two texts without tokens match, and are not similar', '  ', '', 1, 0],
  ['lines beyond those of the target are cut', 'a = 1\nb = 2\nc = 3', 'a = 1', 1, 1],
  ['blank lines count', '\n\n  a = 1\nb = 2', 'a = 1', 0, 0],
  ['a blank line between counts too', 'a = 1\n\nb = 2\nc = 3', 'a = 1\nb = 2', 0, 6 / 11],
  ['the blank line of a target costs an edit', 'a = 1\nb = 2', 'a = 1\n\nb = 2', 1, 11 / 12],
  ['a code point is one character', "x = '😀'", "x = '😁'", 0, 6 / 7],
  ['comments count', 'x = 1  # one', 'x = 1', 0, 5 / 12],
  ['two substitutions', 'foo(a, b)', 'foo(b, a)', 0, 7 / 9],
])('%s', (_, written, target, exact, similarity) => {
  const { exactMatch, editSimilarity } = rewardOf(written, target);
  expect(exactMatch).toBe(exact);
  expect(editSimilarity).toBeCloseTo(similarity, 12);
});

test('the similarity of lines is symmetric, at most 1, and 1 for equal ones alone', () => {
  const line = fc.stringMatching(/^[ab😀]{1,8}$/u);
  fc.assert(
    fc.property(line, line, (a, b) => {
      const { editSimilarity } = rewardOf(a, b);
      expect(editSimilarity).toBe(rewardOf(b, a).editSimilarity);
      expect(editSimilarity).toBeGreaterThanOrEqual(0);
      expect(editSimilarity === 1).toBe(a === b);
    }),
  );
});
