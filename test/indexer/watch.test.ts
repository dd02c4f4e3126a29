/** Following a working tree: what is indexed is at any settled moment what one run over the whole tree would index. */
import { mkdir, mkdtemp, rm, unlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { FSWatcher } from 'chokidar';
import { expect, onTestFinished, test, vi } from 'vitest';
import { indexRepository, indexSources } from '../../services/indexer/index-repository.ts';
import { treeSources } from '../../services/indexer/sources.ts';
import { treeIndexer } from '../../services/indexer/tree-indexer.ts';
import { watchTree } from '../../services/indexer/watch.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { openStore } from '../../services/lib/rag/open-store.ts';
import { LIMITS, python, RememberingEncoder } from './fake-indexer.ts';

const { watchers } = vi.hoisted(() => ({ watchers: [] as FSWatcher[] }));
vi.mock(import('chokidar'), async (original) => {
  const chokidar = await original();
  const watch: typeof chokidar.watch = (...asked) => {
    const watcher = chokidar.watch(...asked);
    watchers.push(watcher);
    return watcher;
  };
  return { ...chokidar, watch };
});

const SOON = { timeout: 20_000, interval: 10 };
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
  const run = treeIndexer(dir, LIMITS.maxFileBytes, (sources) =>
    indexSources({ repo: REPO, sources, store, encoder, options: LIMITS }),
  );
  const index = async (changed?: ReadonlySet<string>) => {
    seen.push(changed ? [...changed].sort() : 'all');
    if (fail) {
      const error = fail;
      fail = undefined;
      throw error;
    }
    await run(changed);
  };
  const follow = () =>
    watchTree({
      dir,
      index,
      onFailure: ({ code }) => failures.push(code),
      signal: stop.signal,
      quietMs: 20,
      retryMs: 1,
    });
  /** Waits until the watched index is what a run over the whole tree makes; compares in a store of its own. */
  const settled = async () => {
    const other = await openStore(`lmdb:${join(root, 'other')}`);
    const whole = await indexRepository({ repo: REPO, dir, store: other, encoder, options: LIMITS });
    await other.close();
    await expect.poll(async () => (await store.head(REPO))?.version, SOON).toBe(whole.version);
    return whole;
  };
  const failNext = (error: ServingError) => {
    fail = error;
  };
  return { root, dir, store, encoder, write, stop, seen, failures, follow, settled, failNext };
}

test('files that come, change, move and go are followed, and only they are read', async () => {
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
  const { write, stop, seen, follow, settled } = await start();
  await write('a.py', python('a', 12));
  await write('build/out.py', python('out', 12));
  const watching = follow();
  await settled();
  await write('.gitignore', 'build/\n');
  expect((await settled()).chunks).toBe(2);
  await vi.waitUntil(() => seen.filter((each) => each === 'all').length === 2, SOON);
  await write('.gitignore', '');
  expect((await settled()).chunks).toBe(4);
  stop.abort();
  await watching;
});

test('a failure that may pass is tried again, with all that changed meanwhile; another ends it', async () => {
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

test("another indexer's version in between is not built on: all is indexed anew", async () => {
  const { root, store, encoder, write, stop, follow, settled } = await start();
  await write('a.py', python('a', 12));
  await write('b.py', python('b', 12));
  const watching = follow();
  await settled();
  // Somebody else's upload.
  const other = join(root, 'elsewhere');
  await mkdir(other);
  await writeFile(join(other, 'foreign.py'), python('foreign', 12));
  const sources = await treeSources(other, LIMITS.maxFileBytes);
  // The lock may outlast the version that was seen by a moment.
  await vi.waitFor(() => indexSources({ repo: REPO, sources, store, encoder, options: LIMITS }), SOON);
  await write('a.py', python('changed', 12));
  expect(await settled()).toMatchObject({ files: 2 });
  stop.abort();
  await watching;
});

test('what the watcher cannot watch is told, and the rest goes on', async () => {
  const { dir, write, stop, failures, follow, settled } = await start();
  await write('a.py', python('a', 12));
  const watching = follow();
  await settled();
  const watcher = watchers.at(-1) as FSWatcher;
  expect(watcher.options.ignorePermissionErrors).toBe(true); // as root there are none to be met
  for (const folder of ['p', 'q']) watcher.emit('error', new Error(`ENOSPC: too many watches, ${dir}/${folder}`));
  expect(failures).toEqual(['internal', 'internal']);
  await write('b.py', python('b', 12));
  await settled();
  stop.abort();
  await watching;
});
