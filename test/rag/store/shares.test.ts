import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { createRetrieval } from '../../../services/lib/rag/search/retrieval.ts';
import { openStore } from '../../../services/lib/rag/store/open-store.ts';
import { packIds } from '../../../services/lib/rag/store/row.ts';
import { withShares } from '../../../services/lib/rag/store/shares.ts';
import type { ChunkRow, Store } from '../../../services/lib/rag/store/store.ts';
import { FINGERPRINT, HIDDEN, MemoryStore } from '../../support/memory-store.ts';
import { startRedis } from '../../support/redis.ts';

const MIB = 1024 * 1024;
/** Hits of one read: with rows of 16 KiB they make 1.6 MiB, which is more than one tenant may have on its way. */
const ROWS = 100;
const ids = (count: number) => Array.from({ length: count }, (_, i) => i.toString(16).padStart(64, '0'));

/** Lets everything happen that waits for nothing. */
const settled = async () => {
  for (let turn = 0; turn < 10; turn++) await new Promise((resolve) => setImmediate(resolve));
};

/** A store that answers when it is told to, and notes what is on its way. */
function slowStore(rowBytes: number) {
  const underWay: { repo: string; answer: () => void }[] = [];
  const begun: string[] = [];
  const bare = {
    address: 'slow',
    contents: async (repo: string, _: string, wanted: string[], { onBytes }: { onBytes: (bytes: number) => void }) => {
      begun.push(repo);
      await new Promise<void>((resolve) => underWay.push({ repo, answer: resolve }));
      onBytes(wanted.length * rowBytes);
      return wanted.map(() => undefined);
    },
  } as unknown as Store;
  const store = withShares(bare);
  const read = (repo: string, rows = ROWS, signal = new AbortController().signal) =>
    store.contents(repo, 'f', ids(rows), { bytes: MIB, rowBytes: MIB, signal });
  /** Answers the oldest read of a repository. */
  const answer = async (repo: string) => {
    const at = underWay.findIndex((each) => each.repo === repo);
    underWay.splice(at, 1)[0]!.answer();
    await settled();
  };
  const count = (repo: string) => underWay.filter((each) => each.repo === repo).length;
  return { read, answer, begun, count };
}

/** Has the shares learn that rows of `repo` are large. */
async function learn({ read, answer }: ReturnType<typeof slowStore>, repo: string) {
  for (let i = 0; i < 30; i++) {
    const one = read(repo);
    await settled();
    await answer(repo);
    await one;
  }
}

describe('reads of a tenant with large rows', () => {
  test('a tenant with large rows has one read on its way at a time, and the small read of another one does not wait', async () => {
    const slow = slowStore(16 * 1024);
    await learn(slow, 'fat:repo');
    const large = [1, 2, 3].map(() => slow.read('fat:repo'));
    await settled();
    expect(slow.count('fat:repo')).toBe(1);
    const small = slow.read('thin:repo', 10);
    await settled();
    expect(slow.count('thin:repo')).toBe(1);
    await slow.answer('thin:repo');
    await small;
    for (let i = 0; i < 3; i++) {
      expect(slow.count('fat:repo')).toBe(1);
      await slow.answer('fat:repo');
    }
    await Promise.all(large);
  });

  test('two tenants with large rows take turns, and a third one comes next whatever waits', async () => {
    const slow = slowStore(16 * 1024);
    for (const repo of ['a:r', 'b:r', 'c:r']) await learn(slow, repo);
    slow.begun.length = 0;
    const reads = ['a:r', 'a:r', 'a:r', 'b:r', 'b:r', 'b:r', 'c:r'].map((repo) => slow.read(repo));
    await settled();
    expect(slow.begun).toEqual(['a:r', 'b:r']);
    await slow.answer('a:r');
    expect(slow.begun.at(-1)).toBe('c:r');
    for (const repo of ['b:r', 'c:r', 'a:r', 'b:r', 'a:r', 'b:r']) {
      await vi.waitUntil(() => slow.count(repo) > 0);
      await slow.answer(repo);
    }
    await Promise.all(reads);
  });

  test('many small reads of one tenant are on their way together', async () => {
    const slow = slowStore(1024);
    const reads = Array.from({ length: 20 }, () => slow.read('default-repo', 10));
    await settled();
    expect(slow.count('default-repo')).toBe(20);
    for (let i = 0; i < 20; i++) await slow.answer('default-repo');
    await Promise.all(reads);
  });

  test('a read whose caller gives up leaves the line, and those behind it go on', async () => {
    const slow = slowStore(16 * 1024);
    await learn(slow, 'fat:repo');
    const [first, abort] = [slow.read('fat:repo'), new AbortController()];
    const given = slow.read('fat:repo', ROWS, abort.signal);
    const last = slow.read('fat:repo');
    await settled();
    abort.abort(new Error('too late'));
    await expect(given).rejects.toThrow('too late');
    const begun = slow.begun.length;
    await slow.answer('fat:repo');
    expect(slow.begun.length).toBe(begun + 1);
    await slow.answer('fat:repo');
    await Promise.all([first, last]);
  });
});

/** Rows with as much text and as long identifiers as an upload can have. */
const fatRows = (): ChunkRow[] =>
  Array.from({ length: 120 }, (_, i) => ({
    chunk: {
      id: i.toString(16).padStart(64, '0'),
      path: `f${i}.txt`,
      startLine: 1,
      endLine: 10,
      text: 'x'.repeat(40_000),
      tokens: ['shared', ...Array.from({ length: 255 }, (_, t) => `t${i}_${t}_${'z'.repeat(100)}`)],
    },
    vector: new Float32Array(HIDDEN),
  }));

const kinds = {
  memory: async () => ({ store: new MemoryStore() as Store, stop: async () => {} }),
  async lmdb() {
    const dir = await mkdtemp(join(tmpdir(), 'llavacode-shares-'));
    const store = await openStore(`lmdb:${dir}`);
    return { store, stop: () => rm(dir, { recursive: true, force: true }) };
  },
  async redis() {
    const server = await startRedis();
    return { store: await openStore(server.url), stop: () => server.stop() };
  },
};

async function publish(store: Store, repo: string, rows: ChunkRow[]): Promise<void> {
  if (store instanceof MemoryStore) return store.publish(repo, rows);
  const writer = await store.lock(repo, 60_000);
  for (let at = 0; at < rows.length; at += 50) await writer.put(FINGERPRINT, rows.slice(at, at + 50));
  const head = { version: '1'.repeat(16), fingerprint: FINGERPRINT, hidden: HIDDEN, files: 1, chunks: rows.length };
  const ids = packIds(rows.map(({ chunk }) => chunk.id));
  await writer.publish({ head: { ...head, languages: {}, indexedAt: new Date(0).toISOString() }, ids });
  await writer.release();
}

test.each(Object.entries(kinds))(
  'beside twenty retrievals of large rows another tenant gets its own before they are over, from %s',
  async (_, start) => {
    const { store, stop } = await start();
    onTestFinished(async () => {
      await store.close();
      await stop();
    });
    await publish(store, 'fat:repo', fatRows());
    const thin = fatRows().slice(0, 2);
    await publish(
      store,
      'thin:repo',
      thin.map((row) => ({ ...row, chunk: { ...row.chunk, text: 'shared', tokens: ['shared'] } })),
    );
    const retrieval = createRetrieval(withShares(store), { queryLines: 10 });
    const ask = (repo: string) =>
      retrieval.retrieve(
        { repo, before: 'shared = 1', after: '', topK: 100, part: 'text' },
        new AbortController().signal,
      );
    await ask('fat:repo');
    await ask('thin:repo');
    let over = 0;
    const fat = Array.from({ length: 20 }, async () => {
      const found = await ask('fat:repo');
      over++;
      return found;
    });
    expect((await ask('thin:repo')).chunks).toHaveLength(1); // the other one is its copy
    expect(over).toBeLessThan(20);
    for (const { chunks, leftOut } of await Promise.all(fat)) {
      expect(leftOut).toBe('too_large');
      expect(chunks.length).toBeGreaterThan(0);
      expect(chunks.reduce((sum, { text }) => sum + text.length, 0)).toBeLessThan(MIB);
    }
  },
);

test('a read of no rows is answered', async () => {
  const store = withShares({ contents: async () => [] } as unknown as Store);
  expect(await store.contents('a:r', 'f', [])).toEqual([]);
});
