/**
 * Redis as it is run in production: cluster, sentinels, TLS, users, a slow network, a full memory, a crash under load.
 */
import { afterEach, describe, expect, test, vi } from 'vitest';
import { ContextFinder, type Degradation } from '../../../services/gateway/context/context.ts';
import { createLogger } from '../../../services/lib/process/log.ts';
import { chunkFile } from '../../../services/lib/rag/chunk.ts';
import { createRetrieval, type Retrieval } from '../../../services/lib/rag/search/retrieval.ts';
import { withBreaker } from '../../../services/lib/rag/store/breaker.ts';
import { openStore } from '../../../services/lib/rag/store/open-store.ts';
import { packIds } from '../../../services/lib/rag/store/row.ts';
import { withRowCache } from '../../../services/lib/rag/store/row-cache.ts';
import type { Store } from '../../../services/lib/rag/store/store.ts';
import { NO_OVERLAYS } from '../../support/no-overlays.ts';
import { redisCli, startRedis } from '../../support/redis.ts';
import { startCluster, startSentinel, startSlowNetwork, startTls } from '../../support/redis-topologies.ts';

const NEVER = new AbortController().signal;
/** Longer than any reconnection takes. Tests wait for events, and the limit is only for a wait that would never end. */
const SOON = { timeout: 120_000, interval: 20 };
vi.setConfig({ testTimeout: 300_000 });
const CHUNKING = { chunkLines: 10, chunkStride: 5 };
const query = (repo: string, before = 'v1_7 v2_7') => ({ repo, before, after: '', topK: 5 });

const toStop: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const stop of toStop.splice(0).reverse()) await stop();
});
function stopping<T extends { stop(): Promise<unknown> }>(started: T): T {
  toStop.push(() => started.stop());
  return started;
}
async function open(url: string): Promise<Store> {
  const store = await openStore(url);
  toStop.push(() => store.close());
  return store;
}

async function publish(store: Store, repo: string, version = '1', lines = 200): Promise<number> {
  const text = Array.from({ length: lines }, (_, i) => `v${version}_${i} = compute_${i}()`).join('\n');
  const chunks = chunkFile(`v${version}.py`, text, CHUNKING);
  const writer = await store.lock(repo, 30_000);
  await writer.put(
    'f',
    chunks.map((chunk) => ({ chunk, vector: Float32Array.of(0.5, 0.25) })),
  );
  const head = {
    version: version.repeat(16),
    fingerprint: 'f',
    hidden: 2,
    files: 1,
    chunks: chunks.length,
    languages: { python: 1 },
    indexedAt: '2026-01-02T03:04:05.678Z',
  };
  await writer.publish({ head, ids: packIds(chunks.map((chunk) => chunk.id)) });
  await writer.sweep();
  await writer.release();
  return chunks.length;
}

/** The context that a completion would get: its version, or the reason why there is none. */
async function outcome(retrieval: Retrieval, repo: string, retrievalBudgetMs = 5_000): Promise<string> {
  const log = createLogger('test', 'silent');
  const sources = {
    retrieval,
    retrievalBudgetMs,
    denseBudgetMs: retrievalBudgetMs,
    contextFingerprint: 'f',
    withoutProjector: 'text' as const,
    hidden: 2,
    queryLines: 10,
    overlays: NO_OVERLAYS,
    log,
  };
  const rag = { repo, mode: 'compressed', topK: 5, path: undefined, retriever: undefined, maxTextTokens: 100 } as const;
  const query = { rag, tenant: 'default', before: 'v1_7 v2_7', after: '' };
  const { report } = await new ContextFinder(sources).find(query, NEVER);
  if (report.degraded) return report.degraded;
  expect(report.chunks.every(({ path }) => path === `v${report.indexVersion?.[0]}.py`)).toBe(true);
  return report.indexVersion as string;
}

describe('a cluster', () => {
  test('a cluster keeps each repository in one slot, goes on without one of its nodes, and finds its repositories again', async () => {
    const cluster = stopping(await startCluster());
    const store = await open(cluster.url);
    expect(store.address).toBe(cluster.url);
    const repos = Array.from({ length: 12 }, (_, i) => `acme/shop-${i}`);
    await vi.waitFor(() => publish(store, repos[0] as string), SOON);
    for (const repo of repos.slice(1)) await publish(store, repo);
    expect(await store.repositories('default')).toEqual([...repos].sort());
    const perNode = await Promise.all(cluster.servers.map(({ port }) => redisCli(port, 'DBSIZE')));
    expect(perNode.every((size) => Number(size) > 0)).toBe(true);
    const retrieval = createRetrieval(store, { queryLines: 10 });
    for (const repo of repos) expect((await retrieval.retrieve(query(repo), NEVER)).chunks).toHaveLength(2);
    const [node] = cluster.servers;
    await node?.kill();
    const outcomes = async () => Promise.all(repos.map((repo) => outcome(retrieval, repo)));
    const after = await outcomes();
    expect(after).toContain('1'.repeat(16)); // repositories on the nodes that are left
    expect(after.filter((each) => each !== '1'.repeat(16))).toContain('store_unavailable');
    expect(new Set(after).size).toBe(2);
    const writer = await store.lock(repos[after.indexOf('1'.repeat(16))] as string, 1_000);
    expect(await writer.remove()).toBe(true);
    await writer.release();
  });
});

describe('a master with sentinels', () => {
  test('clients follow a master to the replica that takes its place', async () => {
    const set = stopping(await startSentinel());
    const store = await open(set.url);
    await vi.waitFor(() => publish(store, 'shop'), SOON);
    const [master, replica, sentinel] = set.servers;
    await vi.waitUntil(
      async () => (await redisCli(replica!.port, 'HEXISTS', 'llavacode:1:{shop}:index', 'head')) === '1',
      SOON,
    );
    await vi.waitUntil(async () => (await redisCli(sentinel!.port, 'SENTINEL', 'replicas', 'shop')) !== '', SOON);
    await master?.kill();
    await expect.poll(() => publish(store, 'shop', '2').catch(() => 'no master'), SOON).toBeGreaterThan(0);
    expect((await store.head('shop'))?.version).toBe('2'.repeat(16));
    expect(await redisCli(replica!.port, 'ROLE')).toMatch(/^master/);
  });
});

describe('TLS', () => {
  test('TLS connects only to a server whose certificate the URL vouches for', async () => {
    const server = stopping(await startTls());
    const store = await open(`${server.url}?ca=${encodeURIComponent(server.ca)}`);
    await publish(store, 'shop');
    expect(await store.head('shop')).toMatchObject({ version: '1'.repeat(16) });
    const distrustful = await open(server.url);
    await expect(distrustful.head('shop')).rejects.toMatchObject({
      code: 'store_unavailable',
      message: expect.stringMatching(/certificate/),
    });
    const plain = await open(server.url.replace('rediss', 'redis'));
    await expect(plain.head('shop')).rejects.toMatchObject({ code: 'store_unavailable' });
    await expect(openStore(`${server.url}?ca=/no/such.pem`)).rejects.toMatchObject({ code: 'config_invalid' });
  });

  test('TLS shows a certificate of ours to a server that asks for one', async () => {
    const server = stopping(await startTls('yes'));
    const ca = `ca=${encodeURIComponent(server.ca)}`;
    const own = `cert=${encodeURIComponent(server.ca)}&key=${encodeURIComponent(server.key)}`;
    const store = await open(`${server.url}?${ca}&${own}`);
    await publish(store, 'shop');
    expect(await store.head('shop')).toMatchObject({ version: '1'.repeat(16) });
    const nobody = await open(`${server.url}?${ca}`);
    await expect(nobody.head('shop')).rejects.toMatchObject({ code: 'store_unavailable' });
  });
});

describe('users', () => {
  test('users need the commands that the store uses, and learn which one they lack', async () => {
    const server = stopping(await startRedis());
    const rights = ['~llavacode:1:*', '+@hash', '+@set', '+@string', '+@keyspace', '+@connection', '+eval', '+info'];
    await redisCli(server.port, 'ACL', 'SETUSER', 'indexer', 'on', '>pass', ...rights);
    await redisCli(
      server.port,
      'ACL',
      'SETUSER',
      'gateway',
      'on',
      '>word',
      '~llavacode:1:*',
      '+@read',
      '+@connection',
      '+eval',
      '+info',
    );
    const at = `127.0.0.1:${server.port}`;
    const indexer = await open(`redis://indexer:pass@${at}`);
    await publish(indexer, 'shop');
    const gateway = await open(`redis://gateway:word@${at}`);
    const { chunks } = await createRetrieval(gateway, { queryLines: 10 }).retrieve(query('shop'), NEVER);
    expect(chunks).toHaveLength(2);
    await expect(gateway.lock('shop', 1_000)).rejects.toMatchObject({
      code: 'store_unavailable',
      message: expect.stringMatching(/NOPERM.*set/i),
    });
    for (const login of ['indexer:wrong', 'nobody:pass']) {
      const stranger = await open(`redis://${login}@${at}`);
      const error = await stranger.head('shop').catch((caught: Error) => caught);
      expect(error).toMatchObject({ code: 'store_unavailable', message: expect.stringMatching(/WRONGPASS|NOAUTH/) });
      expect((error as Error).message).not.toMatch(/wrong@|nobody|pass@/);
    }
  });
});

describe('a slow network', () => {
  test('a slow store costs completions their budget a few times, then nothing, and is used again when it is fast', async () => {
    const server = stopping(await startRedis());
    const network = stopping(await startSlowNetwork(server.port));
    const direct = await open(server.url);
    await publish(direct, 'shop');
    const counted = countedReads(await open(`redis://127.0.0.1:${network.port}`));
    const budgetMs = 50;
    const options = { budgetMs, failures: 3, trialMs: 1_000 };
    const retrieval = createRetrieval(withBreaker(counted, options), { queryLines: 10 });
    // On a busy machine the reads may be slow even now: then the next trial closes the circuit again.
    await expect.poll(() => outcome(retrieval, 'shop'), SOON).toBe('1'.repeat(16));
    network.delayMs = Infinity;
    const seen: string[] = [];
    while (seen.at(-1) !== 'store_unavailable') seen.push(await outcome(retrieval, 'shop', budgetMs));
    expect(new Set(seen.slice(0, -1))).toEqual(new Set<Degradation>(['over_budget']));
    // The circuit is open: completions read nothing, and only the trials do, one per second.
    const { reads } = counted;
    for (let i = 0; i < 100; i++) expect(await outcome(retrieval, 'shop', budgetMs)).toBe('store_unavailable');
    expect(counted.reads - reads).toBeLessThan(10);
    network.delayMs = 0;
    await expect.poll(() => outcome(retrieval, 'shop', 5_000), SOON).toBe('1'.repeat(16));
  });
});

function countedReads(store: Store): Store & { reads: number } {
  const counting: Store & { reads: number } = Object.create(store);
  counting.reads = 0;
  for (const name of ['head', 'snapshot', 'entries', 'contents'] as const) {
    const read = store[name].bind(store) as (...args: unknown[]) => unknown;
    Object.assign(counting, {
      [name]: (...args: unknown[]) => {
        counting.reads++;
        return read(...args);
      },
    });
  }
  Object.defineProperty(counting, 'address', { value: store.address });
  counting.close = () => store.close();
  return counting;
}

describe('a full memory', () => {
  test('a full server without eviction refuses the new version and keeps the old one', async () => {
    const server = stopping(await startRedis(['--maxmemory', '4mb', '--maxmemory-policy', 'noeviction']));
    const store = await open(server.url);
    await publish(store, 'shop');
    await expect(publish(store, 'shop', '2', 200_000)).rejects.toMatchObject({
      code: 'store_unavailable',
      message: expect.stringContaining('OOM'),
    });
    const retrieval = createRetrieval(store, { queryLines: 10 });
    expect(await outcome(retrieval, 'shop')).toBe('1'.repeat(16));
  });

  test('when a full server evicts keys, completions go on without context and never with wrong chunks', async () => {
    const server = stopping(await startRedis(['--maxmemory', '8mb', '--maxmemory-policy', 'allkeys-random']));
    const store = await open(server.url);
    const loaded = createRetrieval(store, { queryLines: 10 });
    const repos = Array.from({ length: 8 }, (_, i) => `shop-${i}`);
    for (const repo of repos) {
      await publish(store, repo);
      expect(await outcome(loaded, repo)).toBe('1'.repeat(16));
    }
    const indexes = () => redisCli(server.port, 'EVAL', "return #redis.call('KEYS', 'llavacode:1:{shop-*')", '0');
    const before = Number(await indexes());
    // Other data in the server grows until a good part of the index is evicted.
    for (let i = 0; Number(await indexes()) > before / 2; i++) {
      await redisCli(
        server.port,
        'EVAL',
        `for i = 1, 200 do redis.call('SET', 'junk-${i}-' .. i, string.rep('x', 4096)) end`,
        '0',
      );
    }
    for (const retrieval of [loaded, createRetrieval(store, { queryLines: 10 })]) {
      const seen = await Promise.all(
        repos.map((repo) => outcome(retrieval, repo).catch((error: { code: string }) => error.code)),
      );
      expect(new Set(seen)).toContain('retrieval_failed');
      // repo_not_found: the set of published repositories may be gone as well.
      for (const each of seen) expect(['retrieval_failed', '1'.repeat(16), 'repo_not_found']).toContain(each);
    }
  });

  test.each(['index', 'chunks', 'rows:f'])('a lost key %s is told from an index that never existed', async (key) => {
    const server = stopping(await startRedis());
    const store = await open(server.url);
    await publish(store, 'shop');
    await redisCli(server.port, 'DEL', `llavacode:1:{shop}:${key}`);
    const retrieval = createRetrieval(store, { queryLines: 10 });
    await expect(retrieval.retrieve(query('shop'), NEVER)).rejects.toMatchObject({ code: 'store_invalid' });
    expect(await outcome(retrieval, 'shop')).toBe('retrieval_failed');
    await publish(store, 'shop');
    expect(await outcome(retrieval, 'shop')).toBe('1'.repeat(16));
  });
});

test('a key that holds something else is damage of one repository, and the store counts as well', async () => {
  const server = stopping(await startRedis());
  const store = withBreaker(await open(server.url), { budgetMs: 30_000, failures: 3 });
  for (const repo of ['shop', 'other']) await publish(store, repo);
  for (const key of ['index', 'chunks', 'rows:f']) {
    await redisCli(server.port, 'DEL', `llavacode:1:{shop}:${key}`);
    await redisCli(server.port, 'SET', `llavacode:1:{shop}:${key}`, 'text');
  }
  for (let i = 0; i < 5; i++) await expect(store.head('shop')).rejects.toMatchObject({ code: 'store_invalid' });
  await expect(store.entries('shop', ['0'.repeat(64)])).rejects.toMatchObject({ code: 'store_invalid' });
  await expect(store.contents('shop', 'f', ['0'.repeat(64)])).rejects.toMatchObject({ code: 'store_invalid' });
  expect(await outcome(createRetrieval(store, { queryLines: 10 }), 'other')).toBe('1'.repeat(16));
});

describe('a crash under load', () => {
  test('a crash under load degrades completions, gives no wrong answer, and is over after the next index run', async () => {
    const server = stopping(await startRedis());
    const url = server.url;
    const store = withRowCache(withBreaker(await open(url), { budgetMs: 3_000, failures: 3, trialMs: 20 }), 1e6);
    await publish(store, 'shop');
    const retrieval = createRetrieval(store, { queryLines: 10 });
    const seen = new Map<string, number>();
    let live = true;
    const load = Promise.all(
      Array.from({ length: 8 }, async () => {
        while (live) {
          const each = await outcome(retrieval, 'shop').catch((error: { code: string }) => error.code);
          seen.set(each, (seen.get(each) ?? 0) + 1);
          await new Promise((resolve) => setImmediate(resolve));
        }
      }),
    );
    const saw = (what: string) => vi.waitUntil(() => seen.has(what), SOON);
    await saw('1'.repeat(16));
    await server.kill();
    await saw('store_unavailable');
    await server.restart(); // empty
    await saw('repo_not_found');
    await vi.waitFor(() => publish(store, 'shop', '2'), SOON);
    await saw('2'.repeat(16));
    live = false;
    await load;
    expect([...seen.keys()].sort()).toEqual(['1'.repeat(16), '2'.repeat(16), 'repo_not_found', 'store_unavailable']);
  });
});
