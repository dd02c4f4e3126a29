import fc from 'fast-check';
import { expect, test } from 'vitest';
import { atOnce } from '../../../services/lib/async/turns.ts';
import { chunkFile, identifiers } from '../../../services/lib/rag/chunk.ts';
import { LivePlaces, liveHits } from '../../../services/lib/rag/search/live.ts';
import { cursorQuery } from '../../../services/lib/rag/search/query.ts';
import { createRetrieval } from '../../../services/lib/rag/search/retrieval.ts';
import { MemoryStore } from '../../support/memory-store.ts';

const CHUNKING = { chunkLines: 10, chunkStride: 10 };
const ALL = new AbortController().signal;
/** Ten lines of which each names something of its own, and `shared` of them the same things as every other one. */
const code = (name: string, shared: number) =>
  Array.from({ length: 10 }, (_, i) => (i < shared ? `common_${i} = 1` : `${name}_${i} = 1`)).join('\n');
const before = Array.from({ length: 10 }, (_, i) => `common_${i} + ${i}`).join('\n');
const hitsOf = (files: Readonly<Record<string, string>>, topK = 10) =>
  atOnce(
    liveHits(
      Object.entries(files).flatMap(([path, text]) => chunkFile(path, text, CHUNKING)),
      cursorQuery(before, '', 10),
      topK,
    ),
  );

test('chunks of the client are found by the share of identifiers that they have in common with the query', () => {
  const hits = hitsOf({ 'few.py': code('few', 2), 'many.py': code('many', 6), 'none.py': code('none', 0) });
  // "1" is an identifier of every chunk and of the query.
  expect(hits.map(({ path, score }) => [path, score])).toEqual([
    ['many.py', 7 / (20 + 11 - 7)],
    ['few.py', 3 / (20 + 11 - 3)],
    ['none.py', 1 / (20 + 11 - 1)],
  ]);
  expect(hitsOf({ 'few.py': code('few', 2), 'many.py': code('many', 6) }, 1)).toHaveLength(1);
});

test('the text around the cursor is not found in what the client has sent, nor one text twice', () => {
  expect(hitsOf({ 'same.py': before, 'a.py': code('a', 5), 'b.py': code('a', 5) }).map(({ path }) => path)).toEqual([
    'a.py',
  ]);
});

test('hits of the client stand among those of the index by their scores, or in turns, each once', () => {
  const score = fc.double({ min: 0, max: 1, noNaN: true });
  const sorted = fc.array(score, { maxLength: 12 }).map((scores) => scores.sort((a, b) => b - a));
  fc.assert(
    fc.property(sorted, sorted, fc.boolean(), (ofClient, ofIndex, isComparable) => {
      const hits = ofClient.map((each, i) => ({ ...chunkFile(`${i}`, 'x', CHUNKING)[0]!, score: each }));
      const places = new LivePlaces(hits, isComparable);
      const merged = ofIndex.flatMap((each, rank) => [...places.before(each, rank), { path: 'index', score: each }]);
      const all = [...merged, ...places.rest()];
      expect(all.filter(({ path }) => path !== 'index')).toEqual(hits);
      expect(all.filter(({ path }) => path === 'index').map((hit) => hit.score)).toEqual(ofIndex);
      if (isComparable) expect(all.map((hit) => hit.score)).toEqual([...ofClient, ...ofIndex].sort((a, b) => b - a));
    }),
  );
});

test('a search puts the client’s chunks among those of the index, and leaves out what they replace', async () => {
  const store = new MemoryStore();
  store.publishFiles('shop', { 'old.py': code('old', 8), 'other.py': code('other', 4), 'copy.py': code('new', 6) });
  const live = hitsOf({ 'old.py': code('new', 6) });
  const retrieve = async (replaced: string[], retriever: 'jaccard' | 'bm25' | 'none') => {
    const query = { repo: 'shop', before, after: '', topK: 10, retriever, live, replaced } as const;
    const { chunks } = await createRetrieval(store, { queryLines: 10 }).retrieve(query, ALL);
    return chunks.map(({ path, isLive = false }) => [path, isLive]);
  };
  // The copy of the live chunk is left out as any copy is.
  expect(await retrieve(['old.py'], 'jaccard')).toEqual([
    ['old.py', true],
    ['other.py', false],
  ]);
  expect(await retrieve([], 'jaccard')).toEqual([
    ['old.py', false],
    ['old.py', true],
    ['other.py', false],
  ]);
  expect(await retrieve(['old.py'], 'bm25')).toEqual([
    ['old.py', true],
    ['other.py', false],
  ]);
  expect(await retrieve(['old.py'], 'none')).toEqual([]);
});

test('identifiers of a live chunk are those of an indexed one', () => {
  const [hit] = hitsOf({ 'a.py': code('a', 5) });
  expect(hit!.tokens).toEqual(identifiers(code('a', 5)));
});
