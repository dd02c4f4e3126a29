import { expect, test } from 'vitest';
import { WordCache } from '../../services/lib/text/word-cache.ts';

test('after ten times as many words as it holds, the cache knows the last ones and no more than two generations', () => {
  const cache = new WordCache();
  const words = 10 * 2 * 32_768;
  for (let i = 0; i < words; i++) cache.put(`word ${i}`, [i]);
  let known = 0;
  // Words of the older generation move to the younger one when they are found: look at those first that were put last.
  for (let i = words - 1; i >= 0; i--) if (cache.get(`word ${i}`)) known++;
  expect(cache.get(`word ${words - 1}`)).toEqual([words - 1]);
  expect(known).toBeGreaterThan(32_768);
  expect(known).toBeLessThanOrEqual(2 * 32_768);
  cache.put('x'.repeat(129), [1]);
  expect(cache.get('x'.repeat(129))).toBeUndefined();
});
