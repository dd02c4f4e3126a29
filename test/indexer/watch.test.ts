/**
 * Following a working tree: whenever changes have settled, the index is what one run over the whole tree would make.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, renameSync, unlinkSync, writeFileSync } from 'node:fs';
import { mkdir, mkdtemp, rename, rm, symlink, unlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { FSWatcher } from 'chokidar';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { indexSources } from '../../services/indexer/index-run.ts';
import { treeSources } from '../../services/indexer/sources.ts';
import { treeIndexer } from '../../services/indexer/tree-indexer.ts';
import { type Watching, watchTree } from '../../services/indexer/watch.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { openStore } from '../../services/lib/rag/store/open-store.ts';
import type { IndexWriter, Store } from '../../services/lib/rag/store/store.ts';
import { LIMITS, python, RememberingEncoder } from '../support/fake-indexer.ts';
import { indexTree } from '../support/index-tree.ts';

const { watchers, atWatch } = vi.hoisted(() => ({ watchers: [] as FSWatcher[], atWatch: vi.fn() }));
vi.mock(import('chokidar'), async (original) => {
  const chokidar = await original();
  const watch: typeof chokidar.watch = (...asked) => {
    const watcher = chokidar.watch(...asked);
    watchers.push(watcher);
    atWatch();
    return watcher;
  };
  return { ...chokidar, watch };
});

const SOON = { timeout: 120_000, interval: 10 };
vi.setConfig({ testTimeout: 300_000 });
const REPO = 'shop';

async function start() {
  const root = await mkdtemp(join(tmpdir(), 'llavacode-watch-'));
  const dir = join(root, 'tree');
  await mkdir(dir);
  const store = await openStore(`lmdb:${join(root, 'store')}`);
  onTestFinished(async () => {
    await store.close();
    await rm(root, { recursive: true, force: true });
  });
  const write = async (path: string, text: string) => {
    await mkdir(dirname(join(dir, path)), { recursive: true });
    await writeFile(join(dir, path), text);
  };
  const encoder = new RememberingEncoder();
  const stop = new AbortController();
  const seen: (readonly string[] | 'all')[] = [];
  const failures: string[] = [];
  let fail: ServingError | undefined;
  const run = treeIndexer(dir, LIMITS, {
    files: async () => (await store.head(REPO))?.files ?? 0,
    index: (sources) => indexSources({ repo: REPO, sources, store, encoder, options: LIMITS }),
  });
  const index = async (changed: ReadonlySet<string> | undefined, mayBeEmpty: boolean) => {
    seen.push(changed ? [...changed].sort() : 'all');
    if (fail) {
      const error = fail;
      fail = undefined;
      throw error;
    }
    return run(changed, mayBeEmpty);
  };
  const follow = (options: Partial<Watching> = {}) =>
    watchTree({
      dir,
      index,
      onFailure: ({ code }) => failures.push(code),
      signal: stop.signal,
      quietMs: 20,
      rootCheckMs: 20,
      settleMs: 20,
      retryMs: 1,
      ...options,
    });
  /** Waits until the watched index is what a run over the whole tree makes in another store. */
  const settled = async () => {
    const other = await openStore(`lmdb:${join(root, 'other')}`);
    const whole = await indexTree({ repo: REPO, dir, store: other, encoder, options: LIMITS });
    await other.close();
    await expect.poll(async () => (await store.head(REPO))?.version, SOON).toBe(whole.version);
    return whole;
  };
  const runsOverAll = () => seen.filter((each) => each === 'all').length;
  const failNext = (error: ServingError) => {
    fail = error;
  };
  return { root, dir, store, encoder, write, stop, seen, failures, follow, settled, runsOverAll, failNext };
}

async function withWriter<T>(store: Store, use: (writer: IndexWriter) => Promise<T>): Promise<T> {
  const writer = await store.lock(REPO, 10_000);
  try {
    return await use(writer);
  } finally {
    await writer.release();
  }
}

/** Removes all rows and leaves the head. */
async function loseChunks(store: Store): Promise<void> {
  const whole = await store.snapshot(REPO);
  if (!whole) throw new Error('no index');
  await withWriter(store, async (writer) => {
    await writer.publish({ head: { ...whole.head, chunks: 0, version: '0'.repeat(16) }, ids: Buffer.alloc(0) });
    await writer.sweep();
    await writer.publish(whole);
  });
}

test('files that come, change, move and go are followed, and only these files are read', async () => {
  const { dir, store, write, stop, seen, follow, settled } = await start();
  await write('a.py', python('a', 12));
  await write('sub/b.ts', python('b', 12));
  const watching = follow();
  await settled();
  await write('a.py', python('changed', 12));
  await settled();
  expect(seen).toEqual(['all', ['a.py']]);
  await write('sub/deep/c.py', python('c', 12));
  await write('node_modules/x.py', 'x = 1');
  await write('.env', 'SECRET=1');
  await settled();
  await unlink(join(dir, 'sub/b.ts'));
  await settled();
  await rm(join(dir, 'sub'), { recursive: true });
  expect((await settled()).chunks).toBe(2);
  expect(await store.head(REPO)).toMatchObject({ files: 1, languages: { python: 1 } });
  expect(seen.flat().filter((path) => path.startsWith('node_modules') || path.startsWith('.'))).toEqual([]);
  stop.abort();
  await watching;
});

test('a .gitignore that changes is obeyed from then on', async () => {
  const { write, stop, runsOverAll, follow, settled } = await start();
  await write('a.py', python('a', 12));
  await write('build/out.py', python('out', 12));
  const watching = follow();
  await settled();
  await write('.gitignore', 'build/\n');
  expect((await settled()).chunks).toBe(2);
  await vi.waitUntil(() => runsOverAll() === 2, SOON);
  await write('.gitignore', '');
  expect((await settled()).chunks).toBe(4);
  stop.abort();
  await watching;
});

test.each(['*\n!*/\n!*.py\n', '.*\n'])(
  'a .gitignore that excludes itself is obeyed nevertheless (%j)',
  async (rules) => {
    const { write, stop, follow, settled } = await start();
    await write('.gitignore', rules);
    await write('sub/.gitignore', rules);
    await write('a.py', python('a', 12));
    await write('sub/b.py', python('b', 12));
    await write('sub/c.py', python('c', 12));
    const watching = follow();
    await settled();
    await write('.gitignore', `${rules}a.py\n`);
    expect((await settled()).files).toBe(2);
    await write('sub/.gitignore', `${rules}b.py\n`);
    expect((await settled()).files).toBe(1);
    stop.abort();
    await watching;
  },
);

test('a virtual environment that is made is left out from then on', async () => {
  const { write, stop, seen, follow, settled } = await start();
  await write('a.py', python('a', 12));
  const watching = follow();
  await settled();
  await write('venv/lib/dep.py', python('dep', 12));
  expect((await settled()).files).toBe(2);
  await write('venv/pyvenv.cfg', 'home = /usr');
  expect((await settled()).files).toBe(1);
  await write('venv/lib/more.py', python('more', 12));
  await write('b.py', python('b', 12));
  expect((await settled()).files).toBe(2);
  expect(seen.flat()).not.toContain('venv/lib/more.py');
  stop.abort();
  await watching;
});

test('a change does not wait for later changes to end', async () => {
  const { write, stop, follow, settled } = await start();
  await write('a.py', python('a', 12));
  const watching = follow({ quietMs: 3_600_000, patienceMs: 50 });
  await settled();
  for (const name of ['b', 'c']) {
    await write(`${name}.py`, python(name, 12));
    await settled();
  }
  stop.abort();
  await watching;
});

describe('folders that are replaced', () => {
  test('a folder that a generator replaces is followed further', async () => {
    const { dir, write, stop, follow, settled } = await start();
    const groups = Array.from({ length: 20 }, (_, i) => `g${i}`);
    const folders = groups.flatMap((group) => [group, `${group}/s`, `${group}/s/t`]);
    for (const folder of folders) await write(`${folder}/a.py`, python('a', 12));
    const watching = follow();
    await settled();
    // A process does this faster than the test could, and faster than chokidar follows: it loses about one in three.
    const replace = `for g in ${groups.join(' ')}; do rm -rf $g && mkdir -p $g/s/t
      for f in $g $g/s $g/s/t; do echo "$f = 1" > $f/a.py; done; done`;
    expect(await once(spawn('sh', ['-c', replace], { cwd: dir, stdio: 'ignore' }), 'exit')).toEqual([0, null]);
    await settled();
    for (const folder of folders) await write(`${folder}/later.py`, python('later', 12));
    expect((await settled()).files).toBe(120);
    stop.abort();
    await watching;
  });

  test('after a folder is replaced everything is indexed and watched anew', async () => {
    const { dir, write, stop, seen, runsOverAll, follow, settled } = await start();
    await write('g/a.py', python('a', 12));
    const watching = follow();
    await settled();
    await rm(join(dir, 'g'), { recursive: true });
    await write('g/b.py', python('b', 12));
    await vi.waitUntil(() => runsOverAll() === 2, SOON);
    await write('g/c.py', python('c', 12));
    await write('new/d.py', python('d', 12));
    expect((await settled()).files).toBe(3);
    await unlink(join(dir, 'new/d.py'));
    expect((await settled()).files).toBe(2);
    expect(runsOverAll()).toBe(2); // a new folder alone needs no run over all
    expect(seen.flat()).toContain('new'); // including files that came before it was watched
    stop.abort();
    await watching;
  });

  test.each(['g', ''])('a folder that is replaced without a sign is found after a while (%j)', async (folder) => {
    const { root, dir, write, stop, seen, runsOverAll, follow, settled } = await start();
    await write('g/a.py', python('a', 12));
    const watching = follow({ checkMs: 20 });
    await settled();
    watchers.at(-1)?.removeAllListeners('all');
    await write('g/b.py', python('b', 12));
    await rename(join(dir, folder), join(root, 'old'));
    await write('g/c.py', python('c', 12));
    expect((await settled()).files).toBe(1);
    expect(runsOverAll()).toBe(2);
    await write('g/d.py', python('d', 12));
    expect((await settled()).files).toBe(2);
    expect(seen.at(-1)).toEqual(['g/d.py']);
    stop.abort();
    await watching;
  });

  test.each(['g', 'f'])('a folder that is replaced by a file, or replaces one, is found as well (%s)', async (path) => {
    const { dir, write, stop, runsOverAll, follow, settled } = await start();
    await write('g/a.py', python('a', 12));
    await write('f', python('f', 12));
    const watching = follow({ checkMs: 20 });
    await settled();
    watchers.at(-1)?.removeAllListeners('all');
    await rm(join(dir, path), { recursive: true });
    await write(path === 'g' ? 'g' : 'f/b.py', python('b', 12));
    await settled();
    expect(runsOverAll()).toBe(2);
    stop.abort();
    await watching;
  });

  test('a folder that is replaced while the watcher gets ready is told from the one that was listed', async () => {
    const { root, dir, write, stop, runsOverAll, follow } = await start();
    await write('g/a.py', python('a', 12));
    atWatch.mockImplementationOnce(() => {
      renameSync(join(dir, 'g'), join(root, 'old'));
      mkdirSync(join(dir, 'g'));
    });
    const watching = follow();
    await vi.waitUntil(() => runsOverAll() === 2, SOON);
    stop.abort();
    await watching;
  });

  test('a folder that is replaced by a link is gone with all that it held, and nothing is read through the link', async () => {
    const { root, dir, store, write, stop, encoder, follow, settled } = await start();
    await write('a.py', python('a', 12));
    for (const name of ['lib', 'other']) await write(`vendor/deep/${name}.py`, python(name, 12));
    await mkdir(join(root, 'outside/deep'), { recursive: true });
    await writeFile(join(root, 'outside/deep/lib.py'), python('secret', 12));
    const watching = follow();
    await settled();
    await rm(join(dir, 'vendor'), { recursive: true });
    await symlink('../outside', join(dir, 'vendor'));
    expect((await settled()).files).toBe(1);
    expect(await store.head(REPO)).toMatchObject({ files: 1 });
    expect(encoder.texts.join()).not.toContain('secret');
    stop.abort();
    await watching;
  });
});

test('a file that takes the place of a link is seen', async () => {
  const { root, dir, stop, follow, settled } = await start();
  for (const link of ['g', 'f.py']) await symlink(root, join(dir, link));
  const watching = follow();
  await settled();
  for (const link of ['g', 'f.py']) unlinkSync(join(dir, link));
  mkdirSync(join(dir, 'g')); // before the watcher can see that the link was gone
  for (const path of ['g/a.py', 'f.py']) writeFileSync(join(dir, path), python('a', 12));
  expect((await settled()).files).toBe(2);
  stop.abort();
  await watching;
});

test('a watch that is stopped before it begins has indexed nothing', async () => {
  const { stop, seen, follow } = await start();
  atWatch.mockImplementationOnce(() => stop.abort());
  await follow();
  expect(seen).toEqual([]);
});

test('a tree to which a link leads is followed', async () => {
  const { root, dir, write, stop, seen, runsOverAll, follow, settled } = await start();
  await write('g/a.py', python('a', 12));
  await symlink(dir, join(root, 'link'));
  const watching = follow({ dir: join(root, 'link') });
  await settled();
  await write('g/b.py', python('b', 12));
  await settled();
  expect(seen).toEqual(['all', ['g/b.py']]);
  expect(runsOverAll()).toBe(1);
  stop.abort();
  await watching;
});

test('a failure that may pass is followed by another attempt with all that changed meanwhile; any other ends the watch', async () => {
  const { write, failures, follow, settled, failNext } = await start();
  await write('a.py', python('a', 12));
  failNext(new ServingError('index_locked', 'somebody else is at it'));
  const watching = follow();
  await settled();
  failNext(new ServingError('store_unavailable', 'it is down'));
  await write('b.py', python('b', 12));
  await settled();
  expect(failures).toEqual(['index_locked', 'store_unavailable']);
  failNext(new ServingError('projector_invalid', 'broken'));
  const ended = expect(watching).rejects.toMatchObject({ code: 'projector_invalid' });
  await write('c.py', python('c', 12));
  await ended;
});

test("after another indexer's version in between everything is indexed anew", async () => {
  const { root, store, encoder, write, stop, follow, settled } = await start();
  await write('a.py', python('a', 12));
  await write('b.py', python('b', 12));
  const watching = follow();
  await settled();
  // Another indexer publishes a version of its own.
  const other = join(root, 'elsewhere');
  await mkdir(other);
  await writeFile(join(other, 'foreign.py'), python('foreign', 12));
  const sources = await treeSources(other, LIMITS);
  // The lock may last a moment longer than the version that was seen.
  await vi.waitFor(() => indexSources({ repo: REPO, sources, store, encoder, options: LIMITS }), SOON);
  await write('a.py', python('changed', 12));
  expect(await settled()).toMatchObject({ files: 2 });
  stop.abort();
  await watching;
});

test.each<[string, (store: Store) => Promise<unknown>]>([
  ['was deleted', async (store) => withWriter(store, (writer) => writer.remove())],
  ['lost chunks', loseChunks],
])('an index that %s meanwhile is made anew', async (_, harm) => {
  const { store, write, stop, seen, follow, settled } = await start();
  await write('a.py', python('a', 12));
  await write('b.py', python('b', 12));
  const watching = follow();
  await settled();
  await vi.waitFor(() => harm(store), SOON); // the lock may last a moment longer
  await write('a.py', python('changed', 12));
  expect(await settled()).toMatchObject({ files: 2 });
  expect(seen).toEqual(['all', ['a.py']]);
  stop.abort();
  await watching;
});

test('a part that cannot be watched is reported, and the rest goes on', async () => {
  const { dir, write, stop, failures, follow, settled } = await start();
  await write('a.py', python('a', 12));
  const watching = follow();
  await settled();
  const watcher = watchers.at(-1) as FSWatcher;
  expect(watcher.options.ignorePermissionErrors).toBe(true); // root meets no such errors
  for (const folder of ['p', 'q']) watcher.emit('error', new Error(`ENOSPC: too many watches, ${dir}/${folder}`));
  expect(failures).toEqual(['internal', 'internal']);
  await write('b.py', python('b', 12));
  await settled();
  stop.abort();
  await watching;
});
