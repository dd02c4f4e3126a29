/** The contract of both stores, tested on each: LMDB in a folder, and Redis with a real redis-server. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { chunkFile } from '../../../services/lib/rag/chunk.ts';
import { openStore } from '../../../services/lib/rag/store/open-store.ts';
import { sideKey, tenantOf } from '../../../services/lib/rag/store/repo-key.ts';
import { fileIdOf, idAt, NO_VECTORS, packIds } from '../../../services/lib/rag/store/row.ts';
import type { ChunkRow, IndexSnapshot, LeftOutRow, RowRead, Store } from '../../../services/lib/rag/store/store.ts';
import { startRedis } from '../../support/redis.ts';

const FINGERPRINT = 'a'.repeat(64);
const OTHER = 'b'.repeat(64);
const TTL_MS = 30_000;

/** Rows of an invented file, with vectors that are exact in fp16. */
function rowsOf(path: string, lines = 25): ChunkRow[] {
  const text = Array.from({ length: lines }, (_, i) => `${path.replaceAll('/', '_')}_${i} = größe("é", ${i})`).join(
    '\n',
  );
  const chunks = chunkFile(path, text, { chunkLines: 10, chunkStride: 5 });
  return chunks.map((chunk, i) => ({ chunk, vector: Float32Array.of(i, -0.5, 2 ** -24) }));
}

function snapshotOf(rows: readonly ChunkRow[], fingerprint = FINGERPRINT, version = '1'): IndexSnapshot {
  return {
    head: {
      version: version.repeat(16),
      fingerprint,
      hidden: 3,
      files: 1,
      chunks: rows.length,
      languages: { python: 1 },
      indexedAt: '2026-01-02T03:04:05.678Z',
    },
    ids: packIds(rows.map((row) => row.chunk.id)),
  };
}

async function publish(
  store: Store,
  repo: string,
  rows: readonly ChunkRow[],
  fingerprint = FINGERPRINT,
  version = '1',
) {
  const writer = await store.lock(repo, TTL_MS);
  await writer.put(fingerprint, rows);
  await writer.publish(snapshotOf(rows, fingerprint, version));
  const removed = await writer.sweep();
  await writer.release();
  return removed;
}

const idsOf = (rows: readonly ChunkRow[]) => rows.map((row) => row.chunk.id);

const kinds = {
  async lmdb() {
    const dir = await mkdtemp(join(tmpdir(), 'llavacode-store-'));
    return { url: `lmdb:${join(dir, 'deep', 'store')}`, stop: () => rm(dir, { recursive: true, force: true }) };
  },
  redis: () => startRedis(),
};

describe.each(Object.entries(kinds))('the %s store', (_, start) => {
  let place: { url: string; stop(): Promise<void> };
  let store: Store;
  let repo: string;
  let repos = 0;
  beforeAll(async () => {
    place = await start();
    store = await openStore(place.url);
  });
  afterAll(async () => {
    await store.close();
    await place.stop();
  });
  beforeEach(() => {
    repo = `acme/shop-${repos++}`;
  });

  test('a repository that was never indexed is unknown', async () => {
    expect(await store.head(repo)).toBeUndefined();
    expect(await store.snapshot(repo)).toBeUndefined();
    expect(await store.entries(repo, ['0'.repeat(64)])).toEqual([undefined]);
    expect(await store.contents(repo, FINGERPRINT, ['0'.repeat(64)])).toEqual([undefined]);
    expect(await store.contents(repo, FINGERPRINT, [])).toEqual([]);
  });

  test('a store gives back what was published', async () => {
    const rows = rowsOf('src/ünïcode.py');
    await publish(store, repo, rows);
    const snapshot = snapshotOf(rows);
    expect(await store.head(repo)).toEqual(snapshot.head);
    const stored = await store.snapshot(repo);
    expect(stored).toEqual(snapshot);
    const ids = rows.map((_, i) => idAt(stored!.ids, i));
    expect(ids).toEqual(idsOf(rows));
    expect(await store.entries(repo, ids)).toEqual(rows.map(({ chunk: { text: _, ...entry } }) => entry));
    expect(await store.contents(repo, FINGERPRINT, ids)).toEqual(
      rows.map(({ chunk: { text }, vector }) => ({ text, vector })),
    );
  });

  test('rows of several vectors and rows of files are given back, and a sweep keeps those that the head counts', async () => {
    const rows = rowsOf('a.py').map(({ chunk }, i) => ({ chunk, vector: Float32Array.of(i, 1, 2, 3, 4, -0.5) }));
    const file = (version: string): ChunkRow => {
      const id = fileIdOf(version, packIds(idsOf(rows)));
      const chunk = { id, path: 'a.py', startLine: 1, endLine: 25, text: '', tokens: [] };
      return { chunk, vector: Float32Array.of(9, 8, 7) };
    };
    const [kept, dropped] = [file('kept'), file('dropped')];
    const { head, ids } = snapshotOf(rows);
    const snapshot = {
      head: { ...head, softPerChunk: 2 as const, fileRows: 1 },
      ids: Buffer.concat([ids, packIds([kept.chunk.id])]),
    };
    const writer = await store.lock(repo, TTL_MS);
    await writer.put(FINGERPRINT, [...rows, kept, dropped]);
    await writer.publish(snapshot);
    expect(await writer.sweep()).toBe(1);
    expect(await writer.stored(FINGERPRINT)).toEqual(new Set([...idsOf(rows), kept.chunk.id]));
    await writer.release();
    expect(await store.snapshot(repo)).toEqual(snapshot);
    const [first, ofFile] = await store.contents(repo, FINGERPRINT, [rows[0]!.chunk.id, kept.chunk.id]);
    expect(first!.vector).toEqual(rows[0]!.vector);
    expect(ofFile).toEqual({ vector: kept.vector, text: '' });
    const { text: _, ...entry } = kept.chunk;
    expect(await store.entries(repo, [kept.chunk.id])).toEqual([entry]);
  });

  test('the files that a run left out are kept beside the index, and go with it', async () => {
    expect(await store.leftOut(repo)).toBeUndefined();
    const leftOut = { counts: { binary: 2, ignored: 1 }, files: [['größe 😀.png', 'binary'] as const] };
    await publish(store, repo, rowsOf('a.py'));
    expect(await store.leftOut(repo)).toBeUndefined(); // as an indexer of an earlier release leaves it
    const writer = await store.lock(repo, TTL_MS);
    await writer.putLeftOut({ counts: {}, files: [] });
    await writer.putLeftOut(leftOut);
    await writer.sweep();
    expect(await store.leftOut(repo)).toEqual(leftOut);
    expect(await store.repositories(tenantOf(repo))).toContain(repo);
    expect((await store.snapshot(repo))?.head.version).toBe('1'.repeat(16));
    await writer.remove();
    expect(await store.leftOut(repo)).toBeUndefined();
    await writer.release();
    await expect(writer.putLeftOut(leftOut)).rejects.toMatchObject({ code: 'index_locked' });
  });

  test('ids that are not those of chunks and files are refused', async () => {
    const rows = rowsOf('a.py');
    const { head, ids } = snapshotOf(rows);
    const writer = await store.lock(repo, TTL_MS);
    await writer.publish({ head: { ...head, fileRows: 2 }, ids });
    await writer.release();
    await expect(store.snapshot(repo)).rejects.toMatchObject({
      code: 'store_invalid',
      message: expect.stringContaining(`${rows.length} chunks and 2 files`),
    });
  });

  test('answers are in the order of the ids, and missing ones are marked', async () => {
    const rows = rowsOf('a.py');
    await publish(store, repo, rows);
    const [first, second] = idsOf(rows) as [string, string];
    const missing = 'f'.repeat(64);
    const contents = await store.contents(repo, FINGERPRINT, [second, missing, first]);
    expect(contents.map((content) => content?.text)).toEqual([rows[1]?.chunk.text, undefined, rows[0]?.chunk.text]);
    expect(await store.contents(repo, OTHER, [first])).toEqual([undefined]);
  });

  test('a part of a content is read alone, and what is too large is left out and told', async () => {
    const rows = rowsOf('a.py', 40);
    await publish(store, repo, rows);
    const ids = idsOf(rows);
    const { length: textBytes } = Buffer.from(rows[0]!.chunk.text);
    const vectors = await store.contents(repo, FINGERPRINT, ids, { part: 'vectors' });
    expect(vectors).toEqual(rows.map(({ vector }) => ({ vector, text: '' })));
    const texts = await store.contents(repo, FINGERPRINT, ids, { part: 'text' });
    expect(texts).toEqual(rows.map(({ chunk }) => ({ vector: new Float32Array(0), text: chunk.text })));
    let bytes = 0;
    const read = async (limits: RowRead) => {
      const leftOut: string[] = [];
      const onLeftOut = ({ id, reason }: LeftOutRow) => leftOut.push(`${ids.indexOf(id)} ${reason}`);
      const onBytes = (count: number) => (bytes = count);
      const found = await store.contents(repo, FINGERPRINT, ids, { ...limits, onLeftOut, onBytes });
      return { found: found.map((row) => row !== undefined), leftOut };
    };
    const all = ids.map(() => true);
    // A vector has 6 bytes, and every row begins with 8.
    expect(await read({ part: 'vectors', rowBytes: textBytes, bytes: 14 * ids.length })).toEqual({
      found: all,
      leftOut: [],
    });
    expect(bytes).toBe(14 * ids.length);
    expect(await read({ part: 'vectors', rowBytes: textBytes, bytes: 14 })).toEqual({
      found: ids.map((_, i) => i === 0),
      leftOut: ids.slice(1).map((_, i) => `${i + 1} later`),
    });
    expect(await read({ rowBytes: textBytes })).toMatchObject({ leftOut: ids.map((_, i) => `${i} too_large`) });
    expect((await store.entries(repo, ids, { rowBytes: 1, onLeftOut: () => {} })).every((row) => !row)).toBe(true);
    await expect(store.entries(repo, ids, { rowBytes: 1 })).rejects.toMatchObject({ code: 'store_invalid' });
  });

  test('repositories are kept apart, even if the name of one begins with that of another', async () => {
    const rows = rowsOf('a.py');
    await publish(store, repo, rows);
    const longer = `${repo}0`;
    await publish(store, longer, rowsOf('b.py'));
    await publish(store, repo, []);
    expect(await store.head(repo)).toMatchObject({ chunks: 0 });
    const kept = await store.contents(longer, FINGERPRINT, idsOf(rowsOf('b.py')));
    expect(kept.every((content) => content !== undefined)).toBe(true);
  });

  test('side indexes are repositories of their own, and are listed apart', async () => {
    await publish(store, repo, rowsOf('a.py'));
    const side = sideKey(repo, 'next');
    await publish(store, side, rowsOf('b.py'));
    expect(await store.head(side)).toMatchObject({ chunks: rowsOf('b.py').length });
    expect(await store.repositories(tenantOf(repo))).toContain(repo);
    expect(await store.repositories(tenantOf(repo))).not.toContain(side);
    expect(await store.repositories(tenantOf(repo), 'sides')).toContain(side);
    await expect(store.head(`${repo}@x`)).rejects.toMatchObject({ code: 'invalid_request' });
  });

  test('readers see the old version until the new one is published, and a sweep removes what the new one does not name', async () => {
    const [kept, dropped, added] = [rowsOf('kept.py'), rowsOf('dropped.py'), rowsOf('added.py')];
    await publish(store, repo, [...kept, ...dropped]);
    const writer = await store.lock(repo, TTL_MS);
    await writer.put(FINGERPRINT, added);
    expect((await store.head(repo))?.version).toBe('1'.repeat(16));
    expect(await writer.stored(FINGERPRINT)).toEqual(new Set(idsOf([...kept, ...dropped, ...added])));
    await writer.publish(snapshotOf([...added, ...kept], FINGERPRINT, '2'));
    expect((await store.head(repo))?.version).toBe('2'.repeat(16));
    expect(await writer.sweep()).toBe(dropped.length);
    expect(await writer.sweep()).toBe(0);
    expect(await writer.stored(FINGERPRINT)).toEqual(new Set(idsOf([...kept, ...added])));
    expect(await store.entries(repo, idsOf(dropped))).toEqual(dropped.map(() => undefined));
    await writer.release();
  });

  test('rows of a version that readers still hold stay until the next sweep', async () => {
    const [both, old, broken, added] = ['both.py', 'old.py', 'broken.py', 'added.py'].map((path) => rowsOf(path));
    const readable = async (fingerprint: string, rows: readonly ChunkRow[]) => {
      const [entries, contents] = await Promise.all([
        store.entries(repo, idsOf(rows)),
        store.contents(repo, fingerprint, idsOf(rows)),
      ]);
      return [entries, contents].map((found) => found.filter((each) => each !== undefined).length);
    };
    await publish(store, repo, [...both!, ...old!]);
    const replaced = await store.snapshot(repo);
    const writer = await store.lock(repo, TTL_MS);
    await writer.put(FINGERPRINT, [...added!, ...broken!]);
    await writer.publish(snapshotOf([...both!, ...added!], FINGERPRINT, '2'));
    expect(await writer.sweep(replaced)).toBe(broken!.length);
    const all = [...both!, ...old!, ...added!];
    expect(await readable(FINGERPRINT, all)).toEqual([all.length, all.length]);
    // Rows of another encoder stand beside these, and there are none of a third.
    const second = await store.snapshot(repo);
    await writer.put(OTHER, [...both!, ...added!]);
    await writer.put('c'.repeat(64), both!);
    await writer.publish(snapshotOf([...both!, ...added!], OTHER, '3'));
    expect(await writer.sweep(second)).toBe(old!.length);
    const current = [...both!, ...added!];
    for (const fingerprint of [FINGERPRINT, OTHER]) {
      expect(await readable(fingerprint, current)).toEqual([current.length, current.length]);
      expect((await readable(fingerprint, old!))[1]).toBe(0);
    }
    expect((await readable('c'.repeat(64), both!))[1]).toBe(0);
    expect(await writer.sweep()).toBe(0);
    expect((await readable(FINGERPRINT, current))[1]).toBe(0);
    expect(await readable(OTHER, current)).toEqual([current.length, current.length]);
    await writer.release();
  });

  test('vectors of two fingerprints are never mixed', async () => {
    const rows = rowsOf('a.py');
    await publish(store, repo, rows);
    const again = rows.map((row) => ({ ...row, vector: Float32Array.of(7, 7, 7, 7) }));
    const writer = await store.lock(repo, TTL_MS);
    expect(await writer.stored(OTHER)).toEqual(new Set());
    await writer.put(OTHER, again);
    const [before] = await store.contents(repo, FINGERPRINT, idsOf(rows));
    expect(before?.vector).toEqual(rows[0]?.vector);
    await writer.publish(snapshotOf(again, OTHER, '2'));
    expect(await writer.sweep()).toBe(0);
    expect(await writer.stored(FINGERPRINT)).toEqual(new Set());
    const [after] = await store.contents(repo, OTHER, idsOf(rows));
    expect(after?.vector).toEqual(Float32Array.of(7, 7, 7, 7));
    await writer.release();
  });

  test('an index without vectors is stored, and its rows are none of an encoder', async () => {
    const rows = rowsOf('a.py').map((row) => ({ ...row, vector: new Float32Array(0) }));
    const writer = await store.lock(repo, TTL_MS);
    await writer.put(NO_VECTORS, rows);
    const snapshot = snapshotOf(rows, NO_VECTORS);
    await writer.publish({ ...snapshot, head: { ...snapshot.head, hidden: 0 } });
    expect(await writer.sweep()).toBe(0);
    expect(await store.head(repo)).toMatchObject({ fingerprint: NO_VECTORS, hidden: 0 });
    expect(await store.contents(repo, NO_VECTORS, idsOf(rows))).toEqual(
      rows.map(({ chunk: { text }, vector }) => ({ text, vector })),
    );
    expect(await writer.stored(NO_VECTORS)).toEqual(new Set(idsOf(rows)));
    expect(await writer.stored(FINGERPRINT)).toEqual(new Set());
    await writer.release();
  });

  test('a sweep removes what a run that broke off left behind', async () => {
    await publish(store, repo, rowsOf('a.py'));
    const broken = await store.lock(repo, TTL_MS);
    await broken.put(FINGERPRINT, rowsOf('left.py'));
    await broken.put(OTHER, rowsOf('left.py'));
    await broken.release();
    expect(await publish(store, repo, rowsOf('a.py'))).toBe(rowsOf('left.py').length);
    const writer = await store.lock(repo, TTL_MS);
    expect(await writer.stored(OTHER)).toEqual(new Set());
    await writer.release();
  });

  test('one indexer at a time can change a repository', async () => {
    const writer = await store.lock(repo, TTL_MS);
    await expect(store.lock(repo, TTL_MS)).rejects.toMatchObject({ code: 'index_locked' });
    const other = await store.lock(`${repo}-other`, TTL_MS);
    await other.release();
    await writer.release();
    await (await store.lock(repo, TTL_MS)).release();
  });

  test('every write of an indexer that lost its lock is refused', async () => {
    const rows = rowsOf('a.py');
    await publish(store, repo, rows);
    const stale = await store.lock(repo, TTL_MS);
    await stale.release();
    const current = await store.lock(repo, TTL_MS);
    await expect(stale.put(FINGERPRINT, rowsOf('b.py'))).rejects.toMatchObject({ code: 'index_locked' });
    await expect(stale.publish(snapshotOf([], FINGERPRINT, '2'))).rejects.toMatchObject({ code: 'index_locked' });
    await stale.release(); // not the current one's lock
    await expect(store.lock(repo, TTL_MS)).rejects.toMatchObject({ code: 'index_locked' });
    expect(await store.head(repo)).toEqual(snapshotOf(rows).head);
    expect(await current.stored(FINGERPRINT)).toEqual(new Set(idsOf(rows)));
    await current.release();
  });

  test('more rows than fit into one message are stored', async () => {
    const rows = rowsOf('large.py', 12_000);
    expect(rows.length).toBeGreaterThan(2_000);
    await publish(store, repo, rows);
    expect(await publish(store, repo, rows.slice(0, 10))).toBe(rows.length - 10);
    const contents = await store.contents(repo, FINGERPRINT, idsOf(rows));
    expect(contents.filter((content) => content !== undefined)).toHaveLength(10);
  });

  test.each(['', '..', 'a/../b', '/abs', 'a//b', 'a b', '{x}', 'a\n', '.hidden', 'a/.git', '-x', 'x'.repeat(201), 'é'])(
    'the repository name %j is refused',
    async (name) => {
      await expect(store.head(name)).rejects.toMatchObject({ code: 'invalid_request', param: 'repo' });
      await expect(store.snapshot(name)).rejects.toMatchObject({ code: 'invalid_request' });
      await expect(store.lock(name, TTL_MS)).rejects.toMatchObject({ code: 'invalid_request' });
    },
  );

  test('vectors that fp16 cannot hold are refused', async () => {
    const writer = await store.lock(repo, TTL_MS);
    const [row] = rowsOf('a.py') as [ChunkRow];
    for (const value of [Number.NaN, Number.POSITIVE_INFINITY, 1e6]) {
      const bad = { ...row, vector: Float32Array.of(value) };
      await expect(writer.put(FINGERPRINT, [bad])).rejects.toMatchObject({ code: 'projector_invalid' });
    }
    await writer.release();
  });
});

test.each(['http://localhost', 'lmdb:', 'redis:localhost', ''])('openStore refuses %j', async (url) => {
  await expect(openStore(url)).rejects.toMatchObject({ code: 'config_invalid' });
});
