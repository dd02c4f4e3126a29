import { execFileSync } from 'node:child_process';
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { indexSources } from '../../services/indexer/index-run.ts';
import { noSkips } from '../../services/indexer/selection.ts';
import { changedSources, listSources, treeSources } from '../../services/indexer/sources.ts';
import type { IndexProgress } from '../../services/indexer/version-builder.ts';
import type { Bundle } from '../../services/lib/model/bundle/bundle.ts';
import { type ContextEncoder, type EncodedChunk, loadContextEncoder } from '../../services/lib/rag/encode/encode.ts';
import { createRetrieval } from '../../services/lib/rag/search/retrieval.ts';
import { openStore } from '../../services/lib/rag/store/open-store.ts';
import { idAt, NO_VECTORS, withEmbeddings } from '../../services/lib/rag/store/row.ts';
import type { Store } from '../../services/lib/rag/store/store.ts';
import { indexTree } from '../support/index-tree.ts';

const REPO = 'acme/shop';
const OPTIONS = { chunkLines: 10, chunkStride: 5, maxFileBytes: 10_000 };
const SIGNAL = new AbortController().signal;

/** An encoder that records its calls. A vector is the length of its text. */
class FakeEncoder implements ContextEncoder {
  readonly fingerprint: string;
  readonly hidden = 2;
  readonly softPerChunk = 1;
  readonly texts: string[] = [];
  fail: ((call: number) => void) | undefined;
  #calls = 0;

  constructor(fingerprint = 'f'.repeat(64)) {
    this.fingerprint = fingerprint;
  }

  async encode(chunks: readonly { readonly text: string }[]) {
    this.fail?.(this.#calls++);
    this.texts.push(...chunks.map(({ text }) => text));
    return chunks.map(({ text }): EncodedChunk => {
      return { vector: Float32Array.of(text.length, 1), encoding: Float32Array.of(text.length, 2), fellBack: false };
    });
  }

  /** Doubles, so that a vector that was projected is told from a mean. */
  async project(encodings: readonly Float32Array[]) {
    return encodings.map((encoding) => encoding.map((value) => 2 * value));
  }
}

let root: string;
let dir: string;
let store: Store;
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'llavacode-indexer-'));
  dir = join(root, 'tree');
  await mkdir(dir);
  store = await openStore(`lmdb:${join(root, 'store')}`);
});
afterEach(async () => {
  await store.close();
  await rm(root, { recursive: true, force: true });
});

async function files(contents: Record<string, string | Uint8Array>) {
  for (const [path, content] of Object.entries(contents)) {
    await mkdir(dirname(join(dir, path)), { recursive: true });
    await writeFile(join(dir, path), content);
  }
}

const python = (name: string, lines: number) =>
  Array.from({ length: lines }, (_, i) => `${name}_${i} = compute_${name}(${i})`).join('\n');

const index = (encoder: ContextEncoder, more: Partial<Parameters<typeof indexTree>[0]> = {}) =>
  indexTree({ repo: REPO, dir, store, encoder, options: OPTIONS, ...more });

describe('an index run', () => {
  test('an index run stores every chunk with its vector, in the order of (path, line)', async () => {
    await files({ 'b.py': python('b', 12), 'a/z.py': python('z', 10), 'a.py': '\n\n' });
    const report = await index(new FakeEncoder());
    expect(report).toMatchObject({
      repo: REPO,
      changed: true,
      files: 3,
      chunks: 3,
      embedded: 3,
      reused: 0,
      removed: 0,
    });
    const { head, ids } = (await store.snapshot(REPO))!;
    expect(head).toMatchObject({
      version: report.version,
      fingerprint: report.fingerprint,
      hidden: 2,
      files: 2,
      chunks: 3,
      languages: { python: 2 },
    });
    const wanted = [0, 1, 2].map((ordinal) => idAt(ids, ordinal));
    const entries = await store.entries(REPO, wanted);
    expect(entries.map((entry) => [entry?.path, entry?.startLine, entry?.endLine])).toEqual([
      ['a/z.py', 1, 10],
      ['b.py', 1, 10],
      ['b.py', 6, 12],
    ]);
    for (const content of await store.contents(REPO, head.fingerprint, wanted)) {
      expect(content?.vector[0]).toBe(content?.text.length);
    }
  });

  test('with one soft token per chunk an index is what it was before there could be more, to the version', async () => {
    await files({ 'a.py': 'x = 1' });
    await index(new FakeEncoder());
    const { head, ids } = (await store.snapshot(REPO))!;
    expect(ids.toString('hex')).toBe('c32852e16c01cf69ecf5c1e3e9c66fd5f667c08a3eeb7e4dde3a6909e212167f');
    expect(head).toStrictEqual({
      version: '23621b4d68245b81',
      fingerprint: 'f'.repeat(64),
      hidden: 2,
      files: 1,
      chunks: 1,
      languages: { python: 1 },
      retriever: 'jaccard',
      indexedAt: expect.any(String),
    });
  });

  test('a second run over the same tree changes nothing', async () => {
    await files({ 'a.py': python('a', 40), 'b.py': python('b', 40) });
    const encoder = new FakeEncoder();
    const first = await index(encoder);
    const head = await store.head(REPO);
    const encoded = encoder.texts.length;
    const second = await index(encoder);
    expect(second).toMatchObject({
      version: first.version,
      changed: false,
      embedded: 0,
      reused: first.chunks,
      removed: 0,
    });
    expect(encoder.texts).toHaveLength(encoded);
    expect(await store.head(REPO)).toEqual(head);
  });

  test('a run encodes what changed, removes one run later what vanished, and the same content has the same version again', async () => {
    await files({ 'a.py': python('a', 10), 'b.py': python('b', 10), 'c.py': python('c', 10) });
    const encoder = new FakeEncoder();
    const first = await index(encoder);
    await files({ 'b.py': python('changed', 10) });
    await rm(join(dir, 'c.py'));
    const second = await index(encoder);
    expect(second).toMatchObject({ changed: true, chunks: 2, embedded: 1, reused: 1, removed: 0 });
    expect(second.version).not.toBe(first.version);
    expect(encoder.texts.at(-1)).toBe(python('changed', 10));
    expect(await index(encoder)).toMatchObject({ changed: false, removed: 2 });
    await files({ 'b.py': python('b', 10), 'c.py': python('c', 10) });
    expect((await index(encoder)).version).toBe(first.version);
  });

  test('a reader that holds the old version in memory can still read its rows while it loads the next one', async () => {
    await files({ 'a.py': python('a', 10), 'b.py': python('b', 10) });
    const first = await index(new FakeEncoder());
    const retrieval = createRetrieval(store, { queryLines: 10 });
    const ask = async () =>
      (await retrieval.retrieve({ repo: REPO, before: 'a_3 = compute_a(3)', after: '', topK: 10 }, SIGNAL))
        .indexVersion;
    expect(await ask()).toBe(first.version);
    await files({ 'a.py': `${python('a', 9)}\nchanged` });
    const second = await index(new FakeEncoder('e'.repeat(64)));
    // Loading an index begins with its snapshot, which this store delays.
    const snapshot = store.snapshot.bind(store);
    let load = () => {};
    const loading = new Promise<void>((resolve) => {
      load = resolve;
    });
    store.snapshot = async (repo) => {
      await loading;
      return snapshot(repo);
    };
    expect(await ask()).toBe(first.version);
    load();
    await expect.poll(ask).toBe(second.version);
  });

  test('with another encoder all chunks are encoded again, and the old vectors are dropped one run later', async () => {
    await files({ 'a.py': python('a', 20) });
    await index(new FakeEncoder());
    const other = new FakeEncoder('e'.repeat(64));
    expect(await index(other)).toMatchObject({ changed: true, embedded: 3, reused: 0, removed: 0 });
    expect((await store.head(REPO))?.fingerprint).toBe(other.fingerprint);
    await index(other);
    expect(await index(new FakeEncoder())).toMatchObject({ embedded: 3 });
  });

  test('the old version is served while another encoder makes the new one, which is then served at once', async () => {
    await files({ 'a.py': python('a', 40), 'b.py': python('b', 2_000).slice(0, 9_000) });
    const first = await index(new FakeEncoder());
    const retrieval = createRetrieval(store, { queryLines: 10 });
    const asked = { repo: REPO, before: 'a_3 = compute_a(3 + 4)', after: '', topK: 10 };
    const other = new FakeEncoder('e'.repeat(64));
    const seen: string[] = [];
    const encode = other.encode.bind(other);
    other.encode = async (chunks) => {
      const { indexVersion, fingerprint, chunks: found } = await retrieval.retrieve(asked, SIGNAL);
      expect(found.length).toBeGreaterThan(0);
      seen.push(`${indexVersion} ${fingerprint}`);
      return encode(chunks);
    };
    const second = await index(other);
    expect(second).toMatchObject({ embedded: first.chunks, reused: 0 });
    expect(new Set(seen)).toEqual(new Set([`${first.version} ${'f'.repeat(64)}`]));
    await expect
      .poll(async () => (await retrieval.retrieve(asked, SIGNAL)).indexVersion, { interval: 1 })
      .toBe(second.version);
    expect((await retrieval.retrieve(asked, SIGNAL)).fingerprint).toBe('e'.repeat(64));
  });

  test('an index without vectors keeps its text, and is encoded as a whole when the model has a projector', async () => {
    await files({ 'a.py': python('a', 30), 'b.py': python('b', 10) });
    const bare = { dir: 'bundle', context: undefined } as Bundle;
    const textOnly = await loadContextEncoder(bare, { threads: 1 });
    const first = await index(textOnly);
    expect(first).toMatchObject({ fingerprint: NO_VECTORS, chunks: 6, embedded: 6 });
    expect(await store.head(REPO)).toMatchObject({ hidden: 0, fingerprint: NO_VECTORS });
    expect(await index(textOnly)).toMatchObject({ version: first.version, changed: false, embedded: 0 });
    // A change set needs no other files: the text of all other chunks is in the store.
    const encoder = new FakeEncoder();
    await files({ 'b.py': python('c', 10) });
    const sources = await changedSources(dir, new Set(['b.py']), OPTIONS);
    const second = await indexSources({ repo: REPO, store, encoder, options: OPTIONS, sources });
    expect(second).toMatchObject({ chunks: 6, embedded: 6, reused: 0, changed: true });
    expect(second.version).not.toBe(first.version);
    expect(encoder.texts).toContain(python('a', 10));
    expect(await store.head(REPO)).toMatchObject({ hidden: 2, fingerprint: encoder.fingerprint });
  });

  test('an index names its retriever, and is encoded anew for one that compares embeddings', async () => {
    await files({ 'a.py': python('a', 20), 'notes.md': 'words' });
    const first = await index(new FakeEncoder());
    expect((await store.head(REPO))?.retriever).toBe('jaccard');
    const ranked = await index(new FakeEncoder(), { options: { ...OPTIONS, retriever: 'bm25' } });
    expect(ranked).toMatchObject({ changed: true, embedded: 0 });
    expect(ranked.version).not.toBe(first.version);
    const keeping = new FakeEncoder(withEmbeddings('f'.repeat(64)));
    keeping.encode = async (chunks) =>
      chunks.map(() => ({
        vector: Float32Array.of(1, 1),
        embedding: Float32Array.of(0.6, 0.8),
        fellBack: true,
      }));
    const dense = await index(keeping, { options: { ...OPTIONS, retriever: 'dense' } });
    expect(dense).toMatchObject({ embedded: first.chunks, reused: 0, unparsed: first.chunks });
    const { head, ids } = (await store.snapshot(REPO))!;
    expect(head.retriever).toBe('dense');
    const [content] = await store.contents(REPO, head.fingerprint, [idAt(ids, 0)]);
    expect(content?.embedding?.[0]).toBeCloseTo(0.6, 3);
  });

  test('an empty tree is published as an empty version', async () => {
    expect(await index(new FakeEncoder())).toMatchObject({ changed: true, files: 0, chunks: 0 });
    const found = await createRetrieval(store, { queryLines: 10 }).retrieve(
      { repo: REPO, before: 'a', after: '', topK: 10 },
      SIGNAL,
    );
    expect(found.chunks).toEqual([]);
  });

  test('after a run that broke off the old version is served, and the next run goes on from there', async () => {
    await files({ 'a.py': python('a', 10) });
    const first = await index(new FakeEncoder());
    await files({
      'b.py': python('b', 3_000).slice(0, 9_000),
      'c.py': python('c', 250),
      'd.py': python('d', 250),
      'e.py': python('e', 2_000),
    });
    const options = { ...OPTIONS, maxFileBytes: 1_000_000 };
    const broken = new FakeEncoder();
    broken.fail = (call) => {
      if (call === 1) throw new Error('power cut');
    };
    await expect(index(broken, { options })).rejects.toThrow('power cut');
    expect((await store.head(REPO))?.version).toBe(first.version);
    const encoder = new FakeEncoder();
    const report = await index(encoder, { options });
    expect(report.embedded + broken.texts.length + 1).toBe(report.chunks);
    expect(broken.texts.length).toBeGreaterThan(0);
  });

  test('a run whose rows the store has lost publishes nothing, and the next run writes them again', async () => {
    await files({ 'a.py': python('a', 30) });
    const lock = store.lock.bind(store);
    store.lock = async (...args) => {
      const writer = await lock(...args);
      const put = writer.put.bind(writer);
      writer.put = (fingerprint, rows) => put(fingerprint, rows.slice(1));
      return writer;
    };
    await expect(index(new FakeEncoder())).rejects.toMatchObject({ code: 'store_unavailable' });
    expect(await store.head(REPO)).toBeUndefined();
    store.lock = lock;
    expect(await index(new FakeEncoder())).toMatchObject({ chunks: 5, embedded: 1 });
  });

  test('a run stops at its signal and leaves no lock behind', async () => {
    await files({ 'a.py': python('a', 10), 'b.py': python('b', 10) });
    const abort = new AbortController();
    const onProgress = () => abort.abort(new Error('stopped by hand'));
    await expect(index(new FakeEncoder(), { signal: abort.signal, onProgress })).rejects.toThrow('stopped by hand');
    expect(await store.head(REPO)).toBeUndefined();
    expect(await index(new FakeEncoder())).toMatchObject({ changed: true, chunks: 2 });
  });

  test('a repository that another run is indexing is refused', async () => {
    const writer = await store.lock(REPO, 30_000);
    await expect(index(new FakeEncoder())).rejects.toMatchObject({ code: 'index_locked' });
    await writer.release();
  });

  test('an index that cannot be read is replaced', async () => {
    await files({ 'a.py': python('a', 10) });
    const writer = await store.lock(REPO, 30_000);
    const head = {
      version: '7',
      fingerprint: 'f',
      hidden: 2,
      files: 1,
      chunks: 1,
      languages: {},
      indexedAt: 'yesterday',
    };
    await writer.publish({ head, ids: Buffer.alloc(1) });
    await writer.release();
    await expect(store.head(REPO)).rejects.toMatchObject({ code: 'store_invalid' });
    const report = await index(new FakeEncoder());
    expect(report).toMatchObject({ changed: true, embedded: 1 });
    expect((await store.head(REPO))?.version).toBe(report.version);
  });

  test('a run reports its progress', async () => {
    await files({ 'a.py': python('a', 10), 'b.bin': new Uint8Array([0]), 'c.py': python('c', 15) });
    const seen: IndexProgress[] = [];
    await index(new FakeEncoder(), { onProgress: (progress) => seen.push(progress) });
    expect(seen.at(-1)).toEqual({ files: 3, filesRead: 3, chunks: 3, embedded: 3 });
    expect(seen.map((progress) => progress.filesRead)).toEqual(seen.map((p) => p.filesRead).sort());
  });
});

describe('sources', () => {
  test('files that are not text are skipped, and counted by reason', async () => {
    await files({
      'ok.py': 'x = 1',
      'bom.py': new Uint8Array([0xef, 0xbb, 0xbf, 0x79, 0x20, 0x3d, 0x20, 0x32]),
      'image.png': new Uint8Array([0x89, 0x50, 0x4e, 0x47, 0, 0, 1]),
      'latin1.py': new Uint8Array([0x78, 0x20, 0x3d, 0x20, 0xe9]),
      'utf16.txt': Buffer.from('\ufeffhello', 'utf16le'),
      'big.py': python('big', 1_000),
      'ünï cödé [x] "q".py': 'odd = name',
      'line\nbreak.py': 'x = 1',
      'back\\slash.py': 'x = 1',
    });
    await symlink('/etc/passwd', join(dir, 'outside.py'));
    await symlink('ok.py', join(dir, 'inside.py'));
    await symlink('/etc', join(dir, 'folder'));
    await symlink('.', join(dir, 'loop'));
    await symlink('nowhere', join(dir, 'dangling'));
    execFileSync('mkfifo', [join(dir, 'pipe')]);
    const encoder = new FakeEncoder();
    const report = await index(encoder);
    expect(report.skipped).toEqual({ ...noSkips(), symlink: 5, oversize: 1, binary: 2, invalid_utf8: 1, odd_name: 2 });
    expect(report.files).toBe(3);
    expect(encoder.texts.sort()).toEqual(['odd = name', 'x = 1', 'y = 2']);
  });

  test('files and folders that may not be read are counted', async () => {
    await files({ 'gone.py': 'x = 1', 'kept.py': 'y = 2' });
    const sources = await treeSources(dir, { maxFileBytes: 100 });
    expect(sources.paths).toEqual(['gone.py', 'kept.py']);
    await rm(join(dir, 'gone.py'));
    expect(await sources.read('gone.py')).toEqual({ skipped: 'unreadable' });
    expect(await sources.read('kept.py')).toEqual({ text: 'y = 2' });
  });

  test('dependencies and outputs of notebooks are left out and counted, unless the defaults are off', async () => {
    const output = { cells: [{ cell_type: 'code', source: ['x = 1'], outputs: ['A'.repeat(20_000)] }] };
    await files({
      'nb.ipynb': JSON.stringify(output),
      'venv/pyvenv.cfg': '',
      'venv/lib/a.py': 'x',
      'conda/conda-meta/history': 'x',
      'conda/b.py': 'x',
      'lib/site-packages/c.py': 'x',
      'package-lock.json': '{}',
    });
    const encoder = new FakeEncoder();
    const { skipped } = await index(encoder);
    expect(encoder.texts).toEqual(['x = 1']);
    expect(skipped).toEqual({ ...noSkips(), notebook: 1, dependency: 3, generated: 1 });
    const options = { ...OPTIONS, maxFileBytes: 50_000, defaultExcludes: false };
    expect(await index(new FakeEncoder(), { options })).toMatchObject({ files: 7, skipped: noSkips() });
  });

  test('.gitignore files are respected, nested ones too, and dot files and dependencies are left out', async () => {
    await files({
      '.gitignore': '*.log\nbuild/\n!keep.log\n/top.py',
      'a.log': 'x',
      'keep.log': 'x',
      'build/out.py': 'x',
      'top.py': 'x',
      'sub/top.py': 'x',
      'sub/.gitignore': 'private.py',
      'sub/private.py': 'x',
      'private.py': 'x',
      '.env': 'SECRET=1',
      '.git/config': 'x',
      'odd [name]/private .py': 'x',
      'odd [name]/b.log': 'x',
      'line\nbreak/c.py': 'x',
      'node_modules/m/index.js': 'x',
      'sub/node_modules/m/index.js': 'x',
    });
    expect((await listSources(dir)).paths).toEqual(['keep.log', 'odd [name]/private .py', 'private.py', 'sub/top.py']);
  });

  test('sources come in one stable order', async () => {
    await files({ 'b/a.py': 'x', 'B.py': 'x', 'a.py': 'x', 'a/b.py': 'x', 'é.py': 'x', 'a-b.py': 'x' });
    expect((await listSources(dir)).paths).toEqual(['B.py', 'a-b.py', 'a.py', 'a/b.py', 'b/a.py', 'é.py']);
  });

  test('a path to index must be a directory', async () => {
    await files({ 'a.py': 'x' });
    for (const path of ['a.py', 'missing']) {
      await expect(index(new FakeEncoder(), { dir: join(dir, path) })).rejects.toMatchObject({
        code: 'invalid_request',
        message: expect.stringContaining(path),
      });
    }
  });
});
