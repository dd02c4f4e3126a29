/** A tree that cannot be looked at is told from one in which nothing is: the index keeps what it had. */
import { mkdir, mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { indexSources } from '../../services/indexer/index-run.ts';
import { treeIndexer } from '../../services/indexer/tree-indexer.ts';
import { watchTree } from '../../services/indexer/watch.ts';
import { openStore } from '../../services/lib/rag/store/open-store.ts';
import { idAt } from '../../services/lib/rag/store/row.ts';
import type { Store } from '../../services/lib/rag/store/store.ts';
import { LIMITS, python, RememberingEncoder } from '../support/fake-indexer.ts';

/** Codes that the system answers with, by the end of a path. Tests may run as root, to whom nothing is forbidden. */
const { refused } = vi.hoisted(() => ({ refused: new Map<string, string>() }));
vi.mock(import('node:fs/promises'), async (original) => {
  const fs = await original();
  const guarded =
    <A extends unknown[], R>(task: (...args: A) => Promise<R>) =>
    async (...args: A): Promise<R> => {
      for (const [end, code] of refused) {
        if (String(args[0]).replace(/\/$/, '').endsWith(end))
          throw Object.assign(new Error(`${code}: ${args[0]}`), { code });
      }
      return task(...args);
    };
  return {
    ...fs,
    readdir: guarded(fs.readdir as never),
    readFile: guarded(fs.readFile as never),
    open: guarded(fs.open as never),
    lstat: guarded(fs.lstat as never),
  } as never;
});

const SOON = { timeout: 120_000, interval: 10 };
vi.setConfig({ testTimeout: 300_000 });
const REPO = 'shop';

let root: string;
let dir: string;
let store: Store;
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'llavacode-away-'));
  dir = join(root, 'tree');
  await mkdir(dir);
  store = await openStore(`lmdb:${join(root, 'store')}`);
});
afterEach(async () => {
  refused.clear();
  await store.close();
  await rm(root, { recursive: true, force: true });
});

const write = async (path: string, text = python(path.replace(/\W/g, '_'), 12)) => {
  await mkdir(dirname(join(dir, path)), { recursive: true });
  await writeFile(join(dir, path), text);
};

const indexer = (encoder = new RememberingEncoder()) =>
  treeIndexer(dir, LIMITS, {
    files: async () => (await store.head(REPO))?.files ?? 0,
    index: (sources) => indexSources({ repo: REPO, sources, store, encoder, options: LIMITS }),
  });

async function indexed(): Promise<string[]> {
  const snapshot = await store.snapshot(REPO);
  if (!snapshot) return [];
  const ids = Array.from({ length: snapshot.head.chunks }, (_, i) => idAt(snapshot.ids, i));
  return [...new Set((await store.entries(REPO, ids)).map((entry) => entry!.path))];
}

describe('an index run', () => {
  test.each(['EACCES', 'EIO', 'ESTALE', 'ENOTCONN'])(
    'a folder that answers with %s keeps its files, and one that is gone does not',
    async (code) => {
      for (const path of ['a.py', 'gone/b.py', 'mount/c.py', 'mount/deep/d.py']) await write(path);
      await indexer()();
      await rm(join(dir, 'gone'), { recursive: true });
      await write('new.py');
      refused.set('/mount', code);
      expect(await indexer()()).toEqual(['mount']);
      expect(await indexed()).toEqual(['a.py', 'mount/c.py', 'mount/deep/d.py', 'new.py']);
      // The encoder is another one, so that what is kept is encoded again from the stored text.
      await indexer(new RememberingEncoder('another'))();
      expect(await indexed()).toEqual(['a.py', 'mount/c.py', 'mount/deep/d.py', 'new.py']);
      refused.clear();
      await rm(join(dir, 'mount'), { recursive: true });
      expect(await indexer()()).toEqual([]);
      expect(await indexed()).toEqual(['a.py', 'new.py']);
    },
  );

  test('a file that cannot be read keeps its chunks, in a run over all and in one over changes', async () => {
    for (const path of ['a.py', 'b.py']) await write(path);
    const index = indexer();
    await index();
    refused.set('/b.py', 'EIO');
    expect(await index()).toEqual(['b.py']);
    await write('a.py', 'changed = 1');
    expect(await index(new Set(['a.py', 'b.py']))).toEqual(['b.py']);
    expect(await indexed()).toEqual(['a.py', 'b.py']);
  });

  test('changes in a folder that cannot be read change nothing', async () => {
    for (const path of ['a.py', 'mount/c.py']) await write(path);
    const index = indexer();
    await index();
    refused.set('/mount', 'ENOTCONN');
    await index(new Set(['mount', 'mount/c.py', 'a.py']));
    expect(await indexed()).toEqual(['a.py', 'mount/c.py']);
  });

  test('where a .gitignore cannot be read nothing that it may exclude is indexed', async () => {
    await write('.gitignore', '');
    await write('sub/.gitignore', 'secret.py');
    for (const path of ['a.py', 'sub/secret.py', 'sub/b.py']) await write(path);
    await indexer()();
    refused.set('sub/.gitignore', 'EACCES');
    expect(await indexer()()).toEqual(['sub']);
    await indexer()(new Set(['sub/secret.py']));
    expect(await indexed()).toEqual(['a.py', 'sub/b.py']);
    refused.set('tree/.gitignore', 'EACCES');
    await expect(indexer()()).rejects.toThrow('cannot be read');
  });

  test('a root that goes away or is replaced in the middle of a run leaves the index as it was', async () => {
    for (const path of ['a.py', 'b.py', 'c.py']) await write(path);
    await indexer()();
    const { version } = (await store.head(REPO))!;
    const encoder = new RememberingEncoder('another');
    encoder.before = async () => rename(dir, join(root, 'away'));
    await expect(indexer(encoder)()).rejects.toThrow('went away');
    const third = new RememberingEncoder('third');
    third.before = async () => {
      await rename(dir, join(root, 'away2'));
      await mkdir(dir);
    };
    await rename(join(root, 'away'), dir);
    await expect(indexer(third)()).rejects.toThrow('was replaced');
    expect((await store.head(REPO))?.version).toBe(version);
  });

  test('an empty tree does not replace an index with files, unless that is meant', async () => {
    await write('a.py');
    await indexer()();
    await rm(join(dir, 'a.py'));
    await expect(indexer()()).rejects.toThrow('holds no files to index, and the index has 1');
    await expect(indexer()(new Set(['a.py']))).rejects.toThrow('holds no files');
    expect(await indexed()).toEqual(['a.py']);
    await indexer()(undefined, true);
    expect(await indexed()).toEqual([]);
  });
});

describe('a watch', () => {
  const follow = (options: { emptyMs?: number } = {}) => {
    const stop = new AbortController();
    const failures: string[] = [];
    const watching = watchTree({
      dir,
      index: indexer(),
      onFailure: ({ message }) => failures.push(message),
      signal: stop.signal,
      quietMs: 20,
      rootCheckMs: 20,
      settleMs: 20,
      ...options,
    });
    const end = async () => {
      stop.abort();
      await watching;
    };
    return { failures, end, watching };
  };
  const holds = (...paths: string[]) => expect.poll(indexed, SOON).toEqual(paths);

  test('a root that is away keeps its index, and is followed further when it is back', async () => {
    for (const path of ['a.py', 'src/b.py']) await write(path);
    const { failures, end } = follow();
    await holds('a.py', 'src/b.py');
    const { version } = (await store.head(REPO))!;
    await rename(dir, join(root, 'away'));
    await vi.waitUntil(() => failures.length > 0, SOON);
    expect((await store.head(REPO))?.version).toBe(version);
    await rename(join(root, 'away'), dir);
    await write('src/c.py');
    await holds('a.py', 'src/b.py', 'src/c.py');
    await write('src/d.py');
    await holds('a.py', 'src/b.py', 'src/c.py', 'src/d.py');
    await end();
  });

  test('a root that is replaced by an empty folder is indexed when it is filled again', async () => {
    for (const path of ['a.py', 'b.py']) await write(path);
    const { failures, end } = follow();
    await holds('a.py', 'b.py');
    await rename(dir, join(root, 'old'));
    await mkdir(dir);
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(await indexed()).toEqual(['a.py', 'b.py']);
    await write('cloned.py');
    await holds('cloned.py');
    await rm(join(dir, 'cloned.py'));
    await vi.waitUntil(() => failures.some((text) => text.includes('holds no files')), SOON);
    expect(await indexed()).toEqual(['cloned.py']);
    await end();
  });

  test('a root that stays empty is indexed as empty', async () => {
    await write('a.py');
    const { end } = follow({ emptyMs: 50 });
    await holds('a.py');
    await rm(join(dir, 'a.py'));
    await holds();
    await write('b.py');
    await holds('b.py');
    await end();
  });

  test('a folder that can be read again is indexed again', async () => {
    for (const path of ['a.py', 'mount/c.py']) await write(path);
    refused.set('/mount', 'EIO');
    const { end } = follow();
    await holds('a.py');
    refused.clear();
    await holds('a.py', 'mount/c.py');
    await write('mount/d.py');
    await holds('a.py', 'mount/c.py', 'mount/d.py');
    await end();
  });

  test('a root that is not there at the start is an error', async () => {
    await rm(dir, { recursive: true });
    await expect(follow().watching).rejects.toMatchObject({ code: 'invalid_request' });
  });
});
