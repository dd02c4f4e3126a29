import { beforeEach, expect, test } from 'vitest';
import { metrics } from '../../../services/lib/process/metrics.ts';
import { withRowCache } from '../../../services/lib/rag/store/row-cache.ts';
import type { ChunkContent, ChunkEntry, Store } from '../../../services/lib/rag/store/store.ts';

const content = (text: string): ChunkContent => ({ text, vector: Float32Array.of(text.length) });
const entry = (id: string): ChunkEntry => ({ id, path: 'a.py', startLine: 1, endLine: 2, tokens: ['x'] });

let asked: string[][];
let gone: Set<string>;
let bare: Store;
beforeEach(() => {
  asked = [];
  gone = new Set();
  bare = {
    contents: async (_repo: string, _fingerprint: string, ids: string[]) => {
      asked.push(ids);
      return ids.map((id) => (gone.has(id) ? undefined : content(`${_repo} ${_fingerprint} ${id}`)));
    },
    entries: async (_repo: string, ids: string[]) => {
      asked.push(ids);
      return ids.map(entry);
    },
  } as unknown as Store;
});

const texts = async (store: Store, ids: string[], repo = 'r', fingerprint = 'f') =>
  (await store.contents(repo, fingerprint, ids)).map((row) => row?.text);

test('the cache asks the store only for rows that it lacks, and keeps their order', async () => {
  const store = withRowCache(bare, 1e6);
  expect(await texts(store, ['1', '2'])).toEqual(['r f 1', 'r f 2']);
  expect(await texts(store, ['3', '2', '1'])).toEqual(['r f 3', 'r f 2', 'r f 1']);
  expect(asked).toEqual([['1', '2'], ['3']]);
  await store.entries('r', ['1']);
  expect(await store.entries('r', ['1'])).toEqual([entry('1')]);
  expect(asked).toEqual([['1', '2'], ['3'], ['1']]);
  const rows = (await metrics.storeRows.get()).values.map(({ labels, value }) => [labels.source, value]);
  expect(Object.fromEntries(rows)).toMatchObject({ cache: 3, store: 4 });
});

test('the cache never gives a row of another repository or encoder', async () => {
  const store = withRowCache(bare, 1e6);
  await texts(store, ['1']);
  expect(await texts(store, ['1'], 'other')).toEqual(['other f 1']);
  expect(await texts(store, ['1'], 'r', 'other')).toEqual(['r other 1']);
});

test('the cache keeps rows that have no vector', async () => {
  const withoutVectors = {
    contents: async (repo: string, fingerprint: string, ids: string[]) =>
      (await bare.contents(repo, fingerprint, ids)).map((row) => row && { ...row, vector: new Float32Array(0) }),
  } as unknown as Store;
  const store = withRowCache(withoutVectors, 1e6);
  expect(await texts(store, ['1'], 'r', 'none')).toEqual(['r none 1']);
  expect(await texts(store, ['1'], 'r', 'none')).toEqual(['r none 1']);
  expect(asked).toEqual([['1']]);
});

test('the cache does not remember that a row was missing', async () => {
  const store = withRowCache(bare, 1e6);
  gone.add('1');
  expect(await texts(store, ['1', '2'])).toEqual([undefined, 'r f 2']);
  gone.delete('1');
  expect(await texts(store, ['1', '2'])).toEqual(['r f 1', 'r f 2']);
});

test('the cache holds no more than its limit, and evicts the least recently used row', async () => {
  const store = withRowCache(bare, 1_000); // two rows
  await texts(store, ['1']);
  await texts(store, ['2']);
  await texts(store, ['1']);
  await texts(store, ['3']);
  asked.length = 0;
  await texts(store, ['1']);
  await texts(store, ['3']);
  expect(asked).toEqual([]);
  await texts(store, ['2']);
  expect(asked).toEqual([['2']]);
  const none = withRowCache(bare, 0);
  await texts(none, ['1']);
  asked.length = 0;
  await texts(none, ['1']);
  expect(asked).toEqual([['1']]);
});

test('loading a whole index bypasses the cache', async () => {
  const store = withRowCache(bare, 1e9);
  const all = Array.from({ length: 512 }, (_, i) => `${i}`);
  await store.entries('r', all);
  await store.entries('r', all);
  expect(asked).toHaveLength(2);
});

test('a row that is larger than the whole cache is not kept, and evicts no other', async () => {
  const store = withRowCache(bare, 1_000);
  await texts(store, ['1']);
  await texts(store, ['x'.repeat(2_000)]);
  asked.length = 0;
  await texts(store, ['1']);
  expect(asked).toEqual([]);
});

test('after ten times as many rows as it has memory for, the cache holds no more than its limit', async () => {
  const limitBytes = 200_000;
  const large = {
    contents: async (_repo: string, _fingerprint: string, ids: string[]) => {
      asked.push(ids);
      return ids.map(() => content('x'.repeat(5_000)));
    },
  } as unknown as Store;
  const store = withRowCache(large, limitBytes);
  const ids = Array.from({ length: 200 }, (_, i) => `${i}`); // of 10,000 bytes each
  for (const id of ids) await store.contents('r', 'f', [id]);
  asked.length = 0;
  for (const id of ids.toReversed()) await store.contents('r', 'f', [id]);
  const held = ids.length - asked.length;
  expect(held).toBeGreaterThan(10);
  expect(held * 10_000).toBeLessThanOrEqual(limitBytes);
});

test('the parts of a row are kept apart', async () => {
  const store = withRowCache(bare, 1e6);
  for (const part of ['text', 'vectors', undefined, 'text'] as const) await store.contents('r', 'f', ['1'], { part });
  expect(asked).toHaveLength(3);
});
