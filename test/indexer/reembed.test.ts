/** Side indexes made of what is stored, over a real LMDB store, and the store as the bundle that they are for sees. */
import { expect, test, vi } from 'vitest';
import { PACED_CALL_MS, reembed } from '../../services/indexer/reembed.ts';
import { LONGEST_WAIT_MS, LOOK_EVERY_MS, Paced } from '../../services/lib/async/paced.ts';
import { sideKey } from '../../services/lib/rag/store/repo-key.ts';
import { idAt, withEmbeddings } from '../../services/lib/rag/store/row.ts';
import { withSideIndexes } from '../../services/lib/rag/store/side-index.ts';
import type { Store } from '../../services/lib/rag/store/store.ts';
import { jsonOfFiles } from '../support/archives.ts';
import { fakeIndexer, python, RememberingEncoder } from '../support/fake-indexer.ts';

const SIGNAL = new AbortController().signal;
const AT_ONCE = new Paced(1);

async function start() {
  const indexer = await fakeIndexer();
  const index = async (files: Record<string, string>, tenant = 'default') => {
    async function* upload() {
      yield { start: { requestId: 'r', tenant, repo: 'shop', format: 'json' } };
      yield { data: jsonOfFiles(files) };
    }
    for await (const { report } of indexer.client.index(upload(), SIGNAL)) if (report) return report;
    throw new Error('no report');
  };
  return { ...indexer, index };
}

/** Brings the side index of `shop` up to date. @returns chunks that were encoded, call by call. */
async function bringUpToDate(store: Store, encoder: RememberingEncoder, repo = 'shop'): Promise<number[]> {
  const calls: number[] = [];
  for (;;) {
    const { embedded, left } = await reembed({ repo, store, encoder, paced: AT_ONCE });
    calls.push(embedded);
    if (left === 0) return calls;
  }
}

const next = () => new RememberingEncoder('next');

/** What a bundle with this encoder reads of the repository. */
async function readBy(store: Store, fingerprint: string, repo = 'shop') {
  const view = withSideIndexes(store, fingerprint);
  const snapshot = (await view.snapshot(repo))!;
  const { head } = snapshot;
  const ids = Array.from({ length: head.chunks }, (_, i) => idAt(snapshot.ids, i));
  const [entries, contents] = await Promise.all([view.entries(repo, ids), view.contents(repo, head.fingerprint, ids)]);
  return { head, ids, entries, contents };
}

test('a side index has the chunks and texts of the index and the other encoder’s vectors, and both are read', async () => {
  const { store, index } = await start();
  await index({ 'a.py': python('a', 25), 'b.py': python('b', 12) });
  const encoder = next();
  const calls = await bringUpToDate(store, encoder);
  const [own, side] = [await readBy(store, 'context'), await readBy(store, 'next')];
  expect(calls).toEqual([own.head.chunks]);
  expect(own.head).toMatchObject({ fingerprint: 'context', version: side.head.of });
  expect(side.head).toMatchObject({ fingerprint: 'next', chunks: own.head.chunks, files: 2, languages: { python: 2 } });
  expect(side.ids).toEqual(own.ids);
  expect(side.entries).toEqual(own.entries);
  expect(side.contents.map((each) => each?.text)).toEqual(own.contents.map((each) => each?.text));
  expect(side.contents.every((each) => each?.vector.length === 2)).toBe(true);
  expect(encoder.texts.toSorted()).toEqual(own.contents.map((each) => each!.text).toSorted());
});

test('a side index that is up to date costs nothing, and follows the index by what is new in it', async () => {
  const { store, index } = await start();
  await index({ 'a.py': python('a', 25), 'b.py': python('b', 12) });
  const encoder = next();
  await bringUpToDate(store, encoder);
  const first = encoder.texts.length;
  expect(await bringUpToDate(store, encoder)).toEqual([0]);
  const { version } = await index({ 'a.py': python('a', 25), 'b.py': python('c', 9) });
  // Until then the one before is served: the repository's chunks of a moment ago.
  expect((await readBy(store, 'next')).head.of).not.toBe(version);
  await bringUpToDate(store, encoder);
  const { head, contents } = await readBy(store, 'next');
  expect(head.of).toBe(version);
  expect(encoder.texts.length - first).toBe(1);
  expect(contents.every((content) => content !== undefined)).toBe(true);
});

test('a large index is encoded in pieces, and a process that ends goes on where it was', async () => {
  const { store, index } = await start();
  const lines = python('many', 2_620);
  const { chunks } = await index({ 'a.py': lines });
  const encoder = next();
  expect(await reembed({ repo: 'shop', store, encoder, paced: AT_ONCE })).toEqual({
    embedded: 512,
    left: chunks - 512,
  });
  expect((await readBy(store, 'next')).head.fingerprint).toBe('context');
  const again = next();
  expect(await bringUpToDate(store, again)).toEqual([chunks - 512]);
  expect(again.texts).toHaveLength(chunks - 512);
  expect((await readBy(store, 'next')).head.chunks).toBe(chunks);
});

test.each([
  ['idle', LOOK_EVERY_MS],
  ['busy', LONGEST_WAIT_MS],
])(
  'on a machine that is %s a paced call ends after a minute, and the next ones make the same side index',
  async (machine, waitMs) => {
    const { store, index } = await start();
    const { chunks } = await index({ 'a.py': python('a', 1_310) });
    const encoder = next();
    const beganMs: number[] = [];
    let [nowMs, restedMs] = [0, 0];
    encoder.before = async () => {
      beganMs.push(nowMs);
      nowMs += 400;
    };
    const sleep = async (ms: number) => {
      nowMs += ms;
      restedMs += ms;
    };
    const paced = new Paced(0.25, { now: () => nowMs, sleep, isBusy: () => machine === 'busy' });
    const calls: number[] = [];
    const tookMs: number[] = [];
    for (let left = 1; left > 0; ) {
      const fromMs = nowMs;
      const call = await reembed({ repo: 'shop', store, encoder, paced });
      left = call.left;
      calls.push(call.embedded);
      tookMs.push(nowMs - fromMs);
      expect(left).toBe(chunks - calls.reduce((all, each) => all + each, 0));
    }
    expect(calls.length).toBeGreaterThan(1);
    const pieceMs = 1_200 + waitMs + 400;
    for (const ms of tookMs.slice(0, -1)) {
      expect(ms).toBeGreaterThanOrEqual(PACED_CALL_MS);
      expect(ms).toBeLessThan(PACED_CALL_MS + pieceMs);
    }
    // Every four chunks take 400 ms, reading and publishing none, and each of these pieces waits for an idle machine.
    expect(beganMs).toHaveLength(Math.ceil(chunks / 4));
    expect(restedMs).toBe(1_200 * beganMs.length + waitMs * (beganMs.length + calls.length + 1));
    expect((await readBy(store, 'next')).head).toMatchObject({ fingerprint: 'next', chunks });
  },
);

test('side indexes are in no list of repositories, and go with their repository', async () => {
  const { store, index, client } = await start();
  await index({ 'a.py': python('a', 12) });
  await bringUpToDate(store, next());
  expect(await store.repositories('default')).toEqual(['shop']);
  expect(await store.repositories('default', 'sides')).toEqual([sideKey('shop', 'next')]);
  await client.delete({ tenant: 'default', repo: 'shop' }, SIGNAL);
  expect(await store.repositories('default', 'sides')).toEqual([]);
  expect(await withSideIndexes(store, 'next').head('shop')).toBeUndefined();
});

test.each(['next', 'last'])(
  'a repository that is removed before the %s chunks are encoded leaves no side index',
  async (which) => {
    const { store, index, client } = await start();
    const { chunks } = await index({ 'a.py': python('a', 660) });
    const encoder = next();
    let batches = 0;
    encoder.before = async () => {
      batches++;
      if (batches === (which === 'next' ? 1 : Math.ceil(chunks / 64))) {
        await client.delete({ tenant: 'default', repo: 'shop' }, SIGNAL);
      }
    };
    await bringUpToDate(store, encoder);
    expect(batches).toBe(which === 'next' ? 1 : Math.ceil(chunks / 64));
    expect(await store.repositories('default')).toEqual([]);
    expect(await store.repositories('default', 'sides')).toEqual([]);
    const writer = await store.lock(sideKey('shop', 'next'), 1_000);
    expect((await writer.stored('next')).size).toBe(0);
    await writer.release();
  },
);

test('a repository that is removed while the work rests ends it without a failure, and leaves no side index', async () => {
  const { store, index, client } = await start();
  await index({ 'a.py': python('a', 12) });
  let nowMs = 0;
  const sleep = async (ms: number) => {
    if (ms !== LOOK_EVERY_MS) await client.delete({ tenant: 'default', repo: 'shop' }, SIGNAL);
  };
  const paced = new Paced(0.1, { now: () => nowMs++, sleep, isBusy: () => false });
  expect(await reembed({ repo: 'shop', store, encoder: next(), paced })).toEqual({ embedded: 0, left: 0 });
  expect(await store.repositories('default', 'sides')).toEqual([]);
});

test('a repository that is gone, or has these vectors itself, keeps no side index', async () => {
  const { store, index } = await start();
  await index({ 'a.py': python('a', 12) });
  await bringUpToDate(store, next());
  const own = new RememberingEncoder('context');
  expect(await bringUpToDate(store, own)).toEqual([0]);
  expect(await bringUpToDate(store, new RememberingEncoder(withEmbeddings('context')))).toEqual([0]);
  const writer = await store.lock('shop', 1_000);
  await writer.remove();
  await writer.release();
  await bringUpToDate(store, next());
  expect(await store.repositories('default', 'sides')).toEqual([]);
});

test('tenants’ repositories of one name have side indexes of their own', async () => {
  const { store, index } = await start();
  await index({ 'a.py': python('a', 12) }, 'acme');
  await index({ 'b.py': python('b', 12) }, 'globex');
  for (const repo of ['acme:shop', 'globex:shop']) await bringUpToDate(store, next(), repo);
  const paths = async (repo: string) => (await readBy(store, 'next', repo)).entries.map((entry) => entry?.path);
  expect(new Set(await paths('acme:shop'))).toEqual(new Set(['a.py']));
  expect(new Set(await paths('globex:shop'))).toEqual(new Set(['b.py']));
  expect(await store.repositories('acme', 'sides')).toEqual([sideKey('acme:shop', 'next')]);
});

test('only one process at a time makes a side index, and one that fails leaves what is served as it was', async () => {
  const { store, index } = await start();
  await index({ 'a.py': python('a', 12) });
  const encoder = next();
  encoder.before = async () => {
    await expect(reembed({ repo: 'shop', store, encoder: next(), paced: AT_ONCE })).rejects.toMatchObject({
      code: 'index_locked',
    });
    throw new Error('the encoder failed');
  };
  await expect(reembed({ repo: 'shop', store, encoder, paced: AT_ONCE })).rejects.toThrow('the encoder failed');
  expect((await readBy(store, 'next')).head.fingerprint).toBe('context');
  encoder.before = async () => {};
  await bringUpToDate(store, encoder);
  expect((await readBy(store, 'next')).head.fingerprint).toBe('next');
});

test('an indexer makes side indexes over the protocol', async () => {
  const { store, index, client } = await start();
  await index({ 'a.py': python('a', 12) });
  // This one has the vectors of the index itself: nothing is to be made.
  expect(await client.reembed({ tenant: 'default', repo: 'shop' }, SIGNAL)).toMatchObject({ embedded: 0, left: 0 });
  await expect(client.reembed({ tenant: 'default', repo: '../x' }, SIGNAL)).rejects.toMatchObject({
    code: 'invalid_request',
  });
  expect(await store.repositories('default', 'sides')).toEqual([]);
});

test('a store without side indexes is read as it is', async () => {
  const { store } = await start();
  expect(withSideIndexes(store, undefined)).toBe(store);
  const view = withSideIndexes(store, 'next');
  expect(await view.head('shop')).toBeUndefined();
  const head = vi.spyOn(store, 'head');
  await view.head('shop');
  expect(head).toHaveBeenCalledTimes(1);
});
