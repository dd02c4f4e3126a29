import { expect, test } from 'vitest';
import { WordCache } from '../../services/lib/text/word-cache.ts';

test('after ten times as many words as it holds, the cache knows the last ones', () => {
  const cache = new WordCache();
  const words = 1_500_000; // of 136 bytes each, of which 16 MiB are kept
  for (let i = 0; i < words; i++) cache.put(`word ${i}`, [i]);
  expect(cache.get(`word ${words - 1}`)).toEqual([words - 1]);
  expect(cache.get(`word ${words - 50_000}`)).toEqual([words - 50_000]);
  expect(cache.get('word 0')).toBeUndefined();
  expect(cache.size).toBeGreaterThan(60_000);
  expect(cache.size).toBeLessThan(130_000);
});

test('long words take the place of more short ones, and longer ones are not cached', () => {
  const cache = new WordCache();
  const ids = Array.from({ length: 128 }, (_, i) => i);
  for (let i = 0; i < 50_000; i++) cache.put(`${i}`.padStart(128, '-'), ids);
  expect(cache.size).toBeLessThan(12_000);
  cache.put('x'.repeat(129), [1]);
  expect(cache.get('x'.repeat(129))).toBeUndefined();
});

test('a word that is used goes on being known, however many others come', () => {
  const cache = new WordCache();
  cache.put('used', [7]);
  for (let i = 0; i < 300_000; i++) {
    cache.put(`word ${i}`, [i]);
    if (i % 1_000 === 0) expect(cache.get('used')).toEqual([7]);
  }
});
