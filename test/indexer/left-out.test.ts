/** Why a file is not in an index: what runs over trees, uploads and change sets keep of it. */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import fc from 'fast-check';
import { expect, onTestFinished, test } from 'vitest';
import { readUpload } from '../../services/indexer/archive.ts';
import { indexSources } from '../../services/indexer/index-run.ts';
import {
  LEFT_OUT_FILE,
  LeftOutNames,
  leftOutAfter,
  leftOutOf,
  readLeftOut,
  writeLeftOut,
} from '../../services/indexer/left-out.ts';
import { noSkips } from '../../services/indexer/selection.ts';
import { type Sources, treeSources } from '../../services/indexer/sources.ts';
import type { ContextEncoder } from '../../services/lib/rag/encode/encode.ts';
import { openStore } from '../../services/lib/rag/store/open-store.ts';
import { NO_VECTORS } from '../../services/lib/rag/store/row.ts';
import { MOST_LEFT_OUT, type Store } from '../../services/lib/rag/store/store.ts';
import { inParts, jsonOfFiles, tarGzOfFiles } from '../support/archives.ts';

const NEVER = new AbortController().signal;
const LIMITS = { maxFileBytes: 1_000, maxUploadBytes: 1e7, maxRepoBytes: 1e7, maxRepoFiles: 5_000 };
const BINARY = 'a\0b';
/** Makes rows without vectors. */
const encoder: ContextEncoder = {
  fingerprint: NO_VECTORS,
  hidden: 0,
  softPerChunk: 1,
  encode: async (chunks) => chunks.map(() => ({ vector: new Float32Array(0), fellBack: false })),
  project: async (encodings) => [...encodings],
};

async function folder(): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-left-out-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  return dir;
}

async function emptyStore(): Promise<Store> {
  const store = await openStore(`lmdb:${await folder()}`);
  onTestFinished(() => store.close());
  return store;
}

/** Indexes, and gives what is kept of the files that were left out. */
async function leftOutBy(store: Store, sources: Sources) {
  const options = { chunkLines: 10, chunkStride: 5, maxFileBytes: LIMITS.maxFileBytes };
  await indexSources({ repo: 'shop', sources, store, encoder, options, signal: NEVER });
  return store.leftOut('shop');
}

async function upload(files: Record<string, string>, limits = LIMITS): Promise<Sources> {
  const bytes = await tarGzOfFiles(files);
  const sources = await readUpload({ format: 'tar.gz', strip: 0, bytes: inParts(bytes) }, limits, NEVER);
  onTestFinished(() => sources.close());
  return sources;
}

async function changes(body: object): Promise<Sources> {
  const bytes = Buffer.from(JSON.stringify(body));
  const sources = await readUpload({ format: 'json', strip: 0, bytes: inParts(bytes) }, LIMITS, NEVER);
  onTestFinished(() => sources.close());
  return sources;
}

test('a run over a tree names what it leaves out, ignored files and folders included', async () => {
  const dir = await folder();
  const files = {
    'a.py': 'a = 1\n',
    '.gitignore': 'build/\n*.log\n',
    'build/out.py': 'x = 1\n',
    'run.log': 'x',
    'logo.png': BINARY,
    'large.py': 'x'.repeat(2_000),
    'lib/site-packages/pip.py': 'x = 1\n',
    'package-lock.json': '{}',
  };
  for (const [path, text] of Object.entries(files)) {
    await mkdir(dirname(join(dir, path)), { recursive: true });
    await writeFile(join(dir, path), text);
  }
  const sources = await treeSources(dir, { maxFileBytes: 1_000 });
  expect(await leftOutBy(await emptyStore(), sources)).toEqual({
    counts: { ignored: 3, binary: 1, oversize: 1, dependency: 1, generated: 1 },
    files: [
      ['.gitignore', 'ignored'],
      ['build/', 'ignored'],
      ['large.py', 'oversize'],
      ['lib/site-packages/', 'dependency'],
      ['logo.png', 'binary'],
      ['package-lock.json', 'generated'],
      ['run.log', 'ignored'],
    ],
  });
});

test('an upload names what the indexer leaves out, and what its client has left out before', async () => {
  const client = { counts: { binary: 7, ignored: 2 }, files: [['logo.png', 'binary'] as const] };
  const files = { 'a.py': 'a = 1\n', '.env': 'x', 'b.py': BINARY, [LEFT_OUT_FILE]: writeLeftOut(client).toString() };
  const sources = await upload(files);
  expect(sources.skipped).toEqual({ ...noSkips(), ignored: 1, binary: 1 }); // the client counts its own
  expect(await leftOutBy(await emptyStore(), sources)).toEqual({
    counts: { binary: 8, ignored: 3 },
    files: [
      ['.env', 'ignored'],
      ['b.py', 'binary'],
      ['logo.png', 'binary'],
    ],
  });
});

test('a run that changes nothing of the index still keeps what it has left out', async () => {
  const store = await emptyStore();
  await leftOutBy(store, await upload({ 'a.py': 'a = 1\n' }));
  const version = (await store.head('shop'))?.version;
  const kept = await leftOutBy(store, await upload({ 'a.py': 'a = 1\n', 'b.py': BINARY }));
  expect([(await store.head('shop'))?.version, kept?.counts]).toEqual([version, { binary: 1 }]);
});

test('a change set changes what is said of its own files, and of no others', async () => {
  const store = await emptyStore();
  await leftOutBy(store, await upload({ 'a.py': 'a = 1\n', 'b.py': BINARY, 'c.py': BINARY, 'd.py': BINARY }));
  const body = {
    changes: [
      { path: 'b.py', content: 'b = 1\n' },
      { path: 'c.py', deleted: true },
      { path: 'e.py', content: 'x'.repeat(2_000) },
    ],
  };
  expect(await leftOutBy(store, await changes(body))).toEqual({
    counts: { binary: 1, oversize: 1 },
    files: [
      ['d.py', 'binary'],
      ['e.py', 'oversize'],
    ],
  });
});

test('however many files are left out, all are counted and a bounded number is named', async () => {
  const files = Object.fromEntries(Array.from({ length: 3_000 }, (_, i) => [`f${i}.py`, BINARY]));
  const kept = await leftOutBy(await emptyStore(), await upload({ 'a.py': 'a = 1\n', ...files }));
  expect([kept?.counts, kept?.files.length]).toEqual([{ binary: 3_000 }, MOST_LEFT_OUT.files]);
  const names = new LeftOutNames();
  for (let i = 0; i < 100; i++) names.add('x'.repeat(4_000), 'binary');
  expect(names.files.length).toBe(Math.floor(MOST_LEFT_OUT.bytes / 4_000));
});

test('whatever a client sends in place of that file costs no index, and brings no path of another form', () => {
  fc.assert(
    fc.property(fc.oneof(fc.uint8Array(), fc.json().map(Buffer.from)), (bytes) => {
      const { files, counts } = readLeftOut(bytes);
      expect(Array.isArray(files) && typeof counts === 'object').toBe(true);
    }),
  );
  const sent = (files: unknown, counts: unknown = {}) => readLeftOut(Buffer.from(JSON.stringify({ files, counts })));
  expect(
    sent([
      ['../x', 'binary'],
      ['/etc/passwd', 'binary'],
      ['a\\b', 'binary'],
      ['a/b.py', 'binary'],
    ]).files,
  ).toEqual([['a/b.py', 'binary']]);
  expect(sent([['a.py', 'no such reason']])).toEqual({ files: [], counts: {} });
  expect(sent([], { binary: -1 })).toEqual({ files: [], counts: {} });
});

test('what is kept is what was there, less what was replaced, and what came', () => {
  const path = fc.constantFrom('a', 'b', 'c', 'd');
  const reason = fc.constantFrom('binary' as const, 'oversize' as const);
  const record = fc.uniqueArray(fc.tuple(path, reason), { selector: ([name]) => name }).map((files) => {
    const names = new LeftOutNames();
    const skipped = noSkips();
    for (const [name, why] of files) {
      names.add(name, why);
      skipped[why]++;
    }
    return leftOutOf(undefined, names, skipped);
  });
  fc.assert(
    fc.property(record, record, fc.array(path), (before, now, more) => {
      const replaced = new Set([...now.files.map(([name]) => name), ...more]);
      const { files, counts } = leftOutAfter(before, now, replaced);
      const wanted = new Map([...before.files.filter(([name]) => !replaced.has(name)), ...now.files]);
      expect(new Map(files)).toEqual(wanted);
      const each = (why: string) => [...wanted.values()].filter((value) => value === why).length;
      for (const why of ['binary', 'oversize']) expect(counts[why] ?? 0).toBe(each(why));
    }),
  );
});

test('an upload as JSON names what is left out as well', async () => {
  const bytes = jsonOfFiles({ 'a.py': 'a = 1\n', '.hidden.py': 'x = 1\n' });
  const sources = await readUpload({ format: 'json', strip: 0, bytes: inParts(await bytes) }, LIMITS, NEVER);
  onTestFinished(() => sources.close());
  expect(sources.leftOut?.files).toEqual([['.hidden.py', 'ignored']]);
});
