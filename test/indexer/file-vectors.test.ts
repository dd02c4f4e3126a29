/** Rows of files: one vector each, the projected mean of the encodings of its chunks, kept as chunks are. */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { indexSources } from '../../services/indexer/index-run.ts';
import { changedSources, treeSources } from '../../services/indexer/sources.ts';
import type { ContextEncoder } from '../../services/lib/rag/encode/encode.ts';
import type { EncoderInput } from '../../services/lib/rag/encode/encoder-input.ts';
import { createRetrieval } from '../../services/lib/rag/search/retrieval.ts';
import { openStore } from '../../services/lib/rag/store/open-store.ts';
import { fileIdOf, idAt, idsWithin } from '../../services/lib/rag/store/row.ts';
import type { Store } from '../../services/lib/rag/store/store.ts';
import { python } from '../support/fake-indexer.ts';

const REPO = 'acme/shop';
const OPTIONS = { chunkLines: 10, chunkStride: 5, maxFileBytes: 100_000, fileVectors: true };

/** A vector is [length of its text, 1]; an encoding its half, which projecting doubles again. */
class HalvingEncoder implements ContextEncoder {
  readonly fingerprint = 'context';
  readonly hidden = 2;
  readonly softPerChunk = 1;
  readonly texts: string[] = [];

  async encode(chunks: readonly EncoderInput[]) {
    this.texts.push(...chunks.map(({ text }) => text));
    return chunks.map(({ text }) => {
      const vector = Float32Array.of(text.length, 1);
      return { vector, encoding: vector.map((value) => value / 2), fellBack: false };
    });
  }

  async project(encodings: readonly Float32Array[]) {
    return encodings.map((encoding) => encoding.map((value) => 2 * value));
  }
}

let root: string;
let dir: string;
let store: Store;
let encoder: HalvingEncoder;
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'llavacode-files-'));
  dir = join(root, 'tree');
  await mkdir(dir);
  store = await openStore(`lmdb:${join(root, 'store')}`);
  encoder = new HalvingEncoder();
});
afterEach(async () => {
  await store.close();
  await rm(root, { recursive: true, force: true });
});

const files = (contents: Readonly<Record<string, string>>) =>
  Promise.all(Object.entries(contents).map(([path, text]) => writeFile(join(dir, path), text)));
const index = async (options: Partial<typeof OPTIONS> = {}) =>
  indexSources({
    repo: REPO,
    sources: await treeSources(dir, OPTIONS),
    store,
    encoder,
    options: { ...OPTIONS, ...options },
  });
const change = async (...paths: string[]) =>
  indexSources({ repo: REPO, sources: await changedSources(dir, paths, OPTIONS), store, encoder, options: OPTIONS });

/** The vectors of the files of the current version by path, each read by the id that a reader computes. */
async function fileVectors(): Promise<Record<string, number[]>> {
  const { head, ids } = (await store.snapshot(REPO))!;
  const all = Array.from({ length: head.chunks + (head.fileRows ?? 0) }, (_, i) => idAt(ids, i));
  const entries = await store.entries(REPO, all.slice(0, head.chunks));
  const paths = [...new Set(entries.map((entry) => entry!.path))];
  expect(paths).toHaveLength(head.files);
  const found: Record<string, number[]> = {};
  for (const path of paths) {
    const own = entries.flatMap((entry, i) => (entry!.path === path ? [i] : []));
    const id = fileIdOf(path, idsWithin(ids, own[0]!, own.at(-1)! + 1));
    if (!all.slice(head.chunks).includes(id)) continue;
    const [content] = await store.contents(REPO, head.fingerprint, [id]);
    found[path] = [...content!.vector];
  }
  return found;
}

/** What {@link fileVectors} must be, from the rows of the chunks. */
async function expectedVectors(): Promise<Record<string, number[]>> {
  const { head, ids } = (await store.snapshot(REPO))!;
  const all = Array.from({ length: head.chunks }, (_, i) => idAt(ids, i));
  const entries = await store.entries(REPO, all);
  const lengths = new Map<string, number[]>();
  for (const [i, content] of (await store.contents(REPO, head.fingerprint, all)).entries()) {
    const { path } = entries[i]!;
    lengths.set(path, [...(lengths.get(path) ?? []), content!.text.length]);
  }
  const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  // Rows are stored in 16 bits: these numbers are small enough to be off by a quarter at most.
  return Object.fromEntries([...lengths].map(([path, values]) => [path, [expect.closeTo(mean(values), 0), 1]]));
}

test('each file has a vector, the mean of its chunks, and a second run encodes nothing', async () => {
  await files({ 'a.py': python('a', 40), 'b.py': python('b', 7), 'empty.py': '\n' });
  const first = await index();
  expect(await store.head(REPO)).toMatchObject({ files: 2, fileRows: 2 });
  expect(await fileVectors()).toEqual(await expectedVectors());
  expect(encoder.texts).toHaveLength(first.chunks);
  expect(first.embedded).toBe(first.chunks);
  encoder.texts.length = 0;
  expect(await index()).toMatchObject({ changed: false, version: first.version, embedded: 0, reused: first.chunks });
  expect(encoder.texts).toEqual([]);
});

test('an index without them has the head and the ids of the release before there were any', async () => {
  await files({ 'a.py': python('a', 40) });
  const { chunks } = await index({ fileVectors: false });
  const { head, ids } = (await store.snapshot(REPO))!;
  expect(ids).toHaveLength(32 * chunks);
  expect(Object.keys(head).sort()).toEqual(
    ['chunks', 'files', 'fingerprint', 'hidden', 'indexedAt', 'languages', 'retriever', 'version'].sort(),
  );
});

test('a file that changes is encoded whole, the others are not, and its old row goes one run later', async () => {
  await files({ 'a.py': python('a', 40), 'b.py': python('b', 40) });
  await index();
  encoder.texts.length = 0;
  await files({ 'b.py': `${python('b', 40)}\nmore = 1` });
  const report = await change('b.py');
  expect(report).toMatchObject({ changed: true, chunks: 15, embedded: 1, reused: 14, removed: 0 });
  expect(encoder.texts.every((text) => text.includes('compute_b'))).toBe(true);
  expect(encoder.texts).toHaveLength(8);
  expect(await fileVectors()).toEqual(await expectedVectors());
  expect(Object.keys(await fileVectors())).toEqual(['a.py', 'b.py']);
  // The new line is in a chunk of its own: only the old row of b.py goes.
  expect(await index()).toMatchObject({ changed: false, removed: 1 });
});

test('an index that had none gets them with the first change, from the texts that it holds, and loses them as easily', async () => {
  await files({ 'a.py': python('a', 40), 'b.py': python('b', 12) });
  const without = await index({ fileVectors: false });
  await files({ 'c.py': python('c', 10) });
  expect(await change('c.py')).toMatchObject({ changed: true, embedded: 1 });
  expect(await fileVectors()).toEqual(await expectedVectors());
  expect(Object.keys(await fileVectors())).toHaveLength(3);
  await rm(join(dir, 'c.py'));
  const again = await index({ fileVectors: false });
  expect(again).toMatchObject({ changed: true, version: without.version });
  expect(await fileVectors()).toEqual({});
});

test('retrieval gives the vectors of the files whose chunks it has found', async () => {
  await files({ 'a.py': python('a', 40), 'b.py': python('b', 12) });
  await index();
  const retrieval = createRetrieval(store, { queryLines: 10 });
  const { signal } = new AbortController();
  const query = {
    repo: REPO,
    before: 'x = compute_a(3) + a_2',
    after: '',
    topK: 4,
    files: 1,
    part: 'vectors',
  } as const;
  const found = await retrieval.retrieve(query, signal);
  expect(found.chunks[0]!.path).toBe('a.py');
  const all = await fileVectors();
  expect(found.files?.map(({ path, vector }) => [path, [...vector]])).toEqual([['a.py', all['a.py']]]);
});

test('whatever changes, in any order, the files of a version have the means of its chunks', async () => {
  const edit = fc.record({
    path: fc.constantFrom('a.py', 'b.py', 'c.py'),
    lines: fc.integer({ min: 0, max: 30 }),
    isWhole: fc.boolean(),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(edit, { minLength: 1, maxLength: 5 }), async (edits) => {
      for (const [i, { path, lines, isWhole }] of edits.entries()) {
        await files({ [path]: python(`${path[0]}${i % 2}`, lines) });
        await (isWhole || i === 0 ? index() : change(path));
        if (((await store.head(REPO))?.chunks ?? 0) > 0) expect(await fileVectors()).toEqual(await expectedVectors());
      }
    }),
    { numRuns: 25 },
  );
});
