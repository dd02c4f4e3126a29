import v8 from 'node:v8';
import vm from 'node:vm';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { CodedIndex } from '../../../services/lib/rag/search/coded-index.ts';
import { DenseIndex, DenseScorer } from '../../../services/lib/rag/search/dense.ts';
import { IndexCache } from '../../../services/lib/rag/search/index-cache.ts';
import { packIds } from '../../../services/lib/rag/store/row.ts';
import type { ChunkRow, LeftOutRow } from '../../../services/lib/rag/store/store.ts';
import { HIDDEN, MemoryStore } from '../../support/memory-store.ts';

const MIB = 1024 * 1024;
const never = () => new AbortController().signal;

/** A chunk of 256 identifiers of its own: the most memory that an upload can make an index take for its size. */
const chunkOf = (repo: number, i: number): ChunkRow => ({
  chunk: {
    id: (repo * 1_000_000 + i).toString(16).padStart(64, '0'),
    path: `f${i >> 4}.py`,
    startLine: 1,
    endLine: 10,
    text: '',
    tokens: Array.from({ length: 256 }, (_, t) => `id_${(i * 256 + t).toString(36)}_${repo}`),
  },
  vector: new Float32Array(HIDDEN),
});

/** A store with repositories of some chunks each, and a cache of their indexes. */
function scene(repos: number, chunks: number, limitBytes: number) {
  const store = new MemoryStore();
  for (let r = 0; r < repos; r++) {
    store.publish(
      `t${r}:r`,
      Array.from({ length: chunks }, (_, i) => chunkOf(r, i)),
    );
  }
  const leftOut: LeftOutRow[] = [];
  const cache = new IndexCache(store, {
    scorer: () => Promise.reject(new Error('no embeddings')),
    limitBytes,
    onLeftOut: (_, row) => leftOut.push(row),
    onUncoded: () => {},
  });
  return { store, cache, leftOut };
}

v8.setFlagsFromString('--expose-gc');
const collectGarbage = vm.runInNewContext('gc') as () => void;
/** Bytes that are in use. */
const inUse = () => {
  collectGarbage();
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
};

test('ten times as many indexes as there is memory for, asked for at once, take no more memory than the limit', async () => {
  const limitBytes = 4 * MIB;
  const repos = 36; // of 1.2 MiB each
  const { store, cache } = scene(repos, 72, limitBytes);
  const before = inUse();
  let [peak, reads, loads, atOnce] = [0, 0, 0, 0];
  store.delay = async ({ what }) => {
    if (what === 'snapshot') loads++;
    if (what === 'entries' && ++reads % 4 === 0) peak = Math.max(peak, inUse() - before);
    atOnce = Math.max(atOnce, loads - loaded);
  };
  let loaded = 0;
  await Promise.all(
    Array.from({ length: repos }, async (_, r) => {
      const index = await cache.get(`t${r}:r`, never());
      loaded++;
      expect(index.lexical.size).toBe(72);
    }),
  );
  expect(loaded).toBe(repos);
  expect(atOnce).toBeLessThanOrEqual(2);
  // V8 takes memory besides what is counted. Without a bound all indexes take 40 MiB.
  expect(peak).toBeGreaterThan(limitBytes / 4);
  expect(peak).toBeLessThan(3 * limitBytes);
});

test('an index that turns out too large while it is loaded is given up before it is read to its end', async () => {
  const { store, cache } = scene(1, 400, 2 * MIB);
  await expect(cache.get('t0:r', never())).rejects.toMatchObject({ code: 'index_too_large' });
  const read = store.asked.filter(({ what }) => what === 'entries').reduce((sum, { ids }) => sum + ids.length, 0);
  expect(read).toBeLessThan(300);
});

test('an index with more chunks than there is memory for is refused by its head, and nothing else is read', async () => {
  const { store, cache } = scene(1, 1, MIB);
  store.publish('t0:r', [chunkOf(0, 0)], { chunks: 1_000_000 });
  await expect(cache.get('t0:r', never())).rejects.toMatchObject({ code: 'index_too_large' });
  expect(new Set(store.asked.map(({ what }) => what))).toEqual(new Set(['head']));
});

test('a tenant that asks for ever new indexes does not drop the one that another tenant uses', async () => {
  const { store, cache } = scene(0, 0, 4 * MIB);
  const chunks = (repo: number, count: number) => Array.from({ length: count }, (_, i) => chunkOf(repo, i));
  store.publish('honest:r', chunks(0, 72)); // takes 1.2 MiB
  for (let r = 1; r <= 12; r++) store.publish(`greedy:r${r}`, chunks(r, 72));
  store.publish('greedy:large', chunks(13, 200)); // takes 3.3 MiB, more than a share
  const index = await cache.get('honest:r', never());
  for (let r = 1; r <= 12; r++) expect((await cache.get(`greedy:r${r}`, never())).lexical.size).toBe(72);
  await expect(cache.get('greedy:large', never())).rejects.toMatchObject({ code: 'saturated' });
  expect(await cache.get('honest:r', never())).toBe(index);
});

test('of ten thousand indexes that are too large a thousand are remembered, and the others are found out again', async () => {
  const { store, cache } = scene(0, 0, 10);
  for (let r = 0; r < 10_240; r++) store.publish(`t${r}:r`, [], { chunks: 1_000 });
  const ask = async (r: number) => {
    const before = store.asked.length;
    await expect(cache.get(`t${r}:r`, never())).rejects.toMatchObject({ code: 'index_too_large' });
    return store.asked.length - before;
  };
  for (let r = 0; r < 10_240; r++) await ask(r);
  expect(await ask(10_239)).toBe(1); // the head alone: it is remembered
  expect(await ask(10_239 - 1_023)).toBe(1);
  expect(await ask(10_239 - 1_500)).toBe(2); // the load looks at the head once more
});

describe('a load', () => {
  test('rows are read in slices that are bounded in bytes, however large the rows are', async () => {
    const { store, cache } = scene(1, 600, 100 * MIB);
    const sizes: number[] = [];
    const entries = store.entries.bind(store);
    store.entries = (repo, ids, read) => entries(repo, ids, { ...read, onBytes: (bytes) => sizes.push(bytes) });
    expect((await cache.get('t0:r', never())).lexical.size).toBe(600);
    expect(Math.max(...sizes)).toBeLessThanOrEqual(256 * 1024);
    expect(sizes.reduce((sum, size) => sum + size)).toBeLessThan(
      1.5 * [...store.entryBytes.values()].reduce((sum, { length }) => sum + length, 0),
    );
  });

  test('a damaged entry and one that is too large are left out, and the places of the others stay', async () => {
    const { store, cache, leftOut } = scene(1, 10, 100 * MIB);
    const [first, second] = [...store.entryBytes.keys()] as [string, string];
    store.entryBytes.set(first, Buffer.from('{'));
    store.entryBytes.set(second, Buffer.from(JSON.stringify(['f0.py', 1, 2, 'x'.repeat(70_000)])));
    const { lexical } = await cache.get('t0:r', never());
    expect(lexical.size).toBe(10);
    const token = chunkOf(0, 2).chunk.tokens[0]!;
    const scoring = { weight: () => 1, score: (shared: number) => shared };
    expect(await lexical.search([token], scoring, 5)).toEqual([{ ordinal: 2, score: 1 }]);
    expect(leftOut.map(({ reason }) => reason)).toEqual(['damaged', 'too_large']);
  });

  test('a store that puts off the first row of a slice has no index, and the load ends', async () => {
    const { store, cache } = scene(1, 10, 100 * MIB);
    store.entries = async (_, ids, read) => {
      for (const id of ids) read?.onLeftOut?.({ id, reason: 'later', why: 'no bytes are left' });
      return ids.map(() => undefined);
    };
    await expect(cache.get('t0:r', never())).rejects.toMatchObject({ code: 'store_invalid' });
  });

  test('a load lets the event loop go on', async () => {
    const { cache } = scene(1, 600, 100 * MIB);
    let turns = 0;
    const counting = setInterval(() => turns++, 0);
    await cache.get('t0:r', never());
    clearInterval(counting);
    expect(turns).toBeGreaterThan(3);
  });

  test('a request that gives up does not end the load, and a later one finds the index', async () => {
    const { store, cache } = scene(1, 10, 100 * MIB);
    let go!: (value?: unknown) => void;
    store.delay = ({ what }) => (what === 'snapshot' ? new Promise((resolve) => (go = resolve)) : Promise.resolve());
    const abort = new AbortController();
    const given = cache.get('t0:r', abort.signal);
    await expect.poll(() => go).toBeDefined();
    abort.abort(new Error('too late'));
    await expect(given).rejects.toThrow('too late');
    const later = cache.get('t0:r', never());
    go();
    expect((await later).lexical.size).toBe(10);
    expect(store.asked.filter(({ what }) => what === 'snapshot')).toHaveLength(1);
  });
});

test('embeddings for which there is no room beside other tenants do not drop the index that they belong to', async () => {
  const dim = 512;
  const store = new MemoryStore();
  const rows = Array.from({ length: 880 }, (_, i) => {
    const row = chunkOf(1, i);
    const tokens = row.chunk.tokens.slice(0, 12);
    return { ...row, chunk: { ...row.chunk, tokens }, embedding: new Float32Array(dim).fill(0.1) };
  });
  store.publish('a:r', rows);
  store.publish(
    'b:r',
    Array.from({ length: 100 }, (_, i) => chunkOf(0, i)), // 1.7 MiB
  );
  const scorer = () => Promise.reject(new Error('the scorer is not reached'));
  const cache = new IndexCache(store, { scorer, limitBytes: 4 * MIB, onLeftOut: () => {}, onUncoded: () => {} });
  await cache.get('b:r', never());
  const index = await cache.get('a:r', never());
  await expect(index.dense(dim, never())).rejects.toMatchObject({ code: 'saturated' });
  store.asked.length = 0;
  expect(await cache.get('a:r', never())).toBe(index);
  expect(store.asked.filter(({ what }) => what !== 'head')).toEqual([]);
});

test('an index with too many embeddings to compare all is searched by codes, and without memory for these all the same', async () => {
  const chunks = 200_000;
  const store = new MemoryStore();
  const { chunk, vector } = chunkOf(0, 0);
  store.publish('a:r', [{ chunk: { ...chunk, tokens: ['a'] }, vector }], { chunks });
  store.ids.set('a:r', packIds(Array.from({ length: chunks }, (_, i) => i.toString(16).padStart(64, '0'))));
  // All chunks have the row of the first, with an embedding of as many values as are asked for.
  const [entry] = await store.entries('a:r', [chunk.id]);
  let embedding = new Float32Array();
  store.entries = async (_, ids) => ids.map(() => entry);
  store.contents = async (_, __, ids) => ids.map(() => ({ text: '', vector, embedding }));
  const scorer = await DenseScorer.load({ threads: 1 });
  onTestFinished(() => scorer.dispose());
  const uncoded: string[] = [];
  const cache = new IndexCache(store, {
    scorer: async () => scorer,
    limitBytes: 1024 * MIB,
    onLeftOut: () => {},
    onUncoded: (repo, reason) => uncoded.push(`${repo}: ${reason}`),
  });
  const index = await cache.get('a:r', never());
  const loaded = (dim: number) => {
    embedding = new Float32Array(dim).fill(1);
    return index.dense(dim, never());
  };
  expect([await loaded(2), uncoded]).toEqual([expect.any(CodedIndex), []]);
  class NoMemory {
    constructor() {
      throw new RangeError('could not allocate memory');
    }
  }
  vi.stubGlobal('WebAssembly', { Memory: NoMemory });
  onTestFinished(() => void vi.unstubAllGlobals());
  const plain = await loaded(3);
  expect([plain, uncoded]).toEqual([expect.any(DenseIndex), ['a:r: could not allocate memory']]);
  const hits = await plain!.search(Float32Array.of(1, 1, 1), 2);
  expect(hits.map(({ ordinal }) => ordinal)).toEqual([0, 1]);
});
