/**
 * LMDB shared by processes: this one reads like a gateway, while others index (lmdb-writer.mjs, on the built package).
 */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterEach, beforeEach, expect, onTestFinished, test, vi } from 'vitest';
import { createRetrieval } from '../../../services/lib/rag/search/retrieval.ts';
import { openStore } from '../../../services/lib/rag/store/open-store.ts';
import type { Store } from '../../../services/lib/rag/store/store.ts';

const WRITER = fileURLToPath(new URL('lmdb-writer.mjs', import.meta.url));
const REPO = 'acme/shop';
const SIGNAL = new AbortController().signal;
/** Longer than a process takes on a busy machine: only for a wait that would never end. */
const SOON = { timeout: 120_000, interval: 10 };
vi.setConfig({ testTimeout: 300_000 });

let dir: string;
let store: Store;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-lmdb-'));
  store = await openStore(`lmdb:${dir}`);
});
afterEach(async () => {
  await store.close();
  await rm(dir, { recursive: true, force: true });
});

/** Indexes in another process, which does not outlive the test. */
function indexInAnotherProcess(version: string) {
  const running = promisify(execFile)(process.execPath, [WRITER, dir, REPO, version, 'publish']);
  onTestFinished(() => void running.child.kill('SIGKILL'));
  return running;
}

test('a reader sees what another process has published, and never half of it', async () => {
  const retrieval = createRetrieval(store, { queryLines: 10 });
  const query = { repo: REPO, before: 'v1_7 v2_7 v3_7', after: '', topK: 10 };
  await indexInAnotherProcess('1');
  expect((await retrieval.retrieve(query, SIGNAL)).indexVersion).toBe('1'.repeat(16));
  for (const version of ['2', '3']) {
    const indexing = indexInAnotherProcess(version);
    let done = false;
    void indexing.finally(() => {
      done = true;
    });
    while (!done) {
      await turn(); // retrieval from memory alone would never let the event loop see that the other process has ended
      const { indexVersion, chunks } = await retrieval.retrieve(query, SIGNAL);
      expect(chunks.length).toBeGreaterThan(0);
      for (const chunk of chunks) {
        expect(chunk.path).toBe(`v${indexVersion[0]}.py`);
        expect(chunk.vector).toHaveLength(1536);
      }
    }
    await indexing;
  }
  await expect.poll(async () => (await retrieval.retrieve(query, SIGNAL)).indexVersion, SOON).toBe('3'.repeat(16));
});

test('an indexer that is killed leaves the old version, and its lock runs out', async () => {
  await indexInAnotherProcess('1');
  const head = await store.head(REPO);
  const indexer = spawn(process.execPath, [WRITER, dir, REPO, '2', 'hang'], { stdio: ['ignore', 'pipe', 'inherit'] });
  onTestFinished(() => void indexer.kill('SIGKILL'));
  await once(indexer.stdout, 'data');
  await expect(store.lock(REPO, 1_000)).rejects.toMatchObject({ code: 'index_locked' });
  const exited = once(indexer, 'exit');
  indexer.kill('SIGKILL');
  await exited;
  expect(await store.head(REPO)).toEqual(head);
  const next = await vi.waitUntil(() => store.lock(REPO, 1_000).catch(() => undefined), SOON);
  expect(await next.stored('f')).toHaveLength(2 * head!.chunks); // the next run reuses these
  await next.release();
});

test('setting the clock prolongs no lock, and a holder writes nothing more once another one has the lock', async () => {
  const dead = await store.lock(REPO, 15_000);
  await expect(store.lock(REPO, 15_000)).rejects.toMatchObject({ code: 'index_locked' });
  const now = Date.now();
  vi.spyOn(Date, 'now').mockReturnValue(now - 3_600_000);
  onTestFinished(() => void vi.restoreAllMocks());
  const next = await store.lock(REPO, 15_000);
  await expect(store.lock(REPO, 15_000)).rejects.toMatchObject({ code: 'index_locked' });
  await expect(dead.put('f', [])).rejects.toMatchObject({ code: 'index_locked' });
  await next.put('f', []);
  await dead.release();
  await next.release();
});

test('a path that is not a directory is refused by name', async () => {
  const file = join(dir, 'file');
  await writeFile(file, '');
  await expect(openStore(`lmdb:${join(file, 'store')}`)).rejects.toMatchObject({
    code: 'store_unavailable',
    message: expect.stringContaining(file),
  });
});
