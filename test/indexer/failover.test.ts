/**
 * A planned failover of the store in the middle of an index run, of an upload, of a watch, and of the retrievals of a
 * gateway. The old master stays reachable, as a replica.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { ContextFinder } from '../../services/gateway/context/context.ts';
import { indexSources } from '../../services/indexer/index-run.ts';
import { treeIndexer } from '../../services/indexer/tree-indexer.ts';
import { watchTree } from '../../services/indexer/watch.ts';
import { createLogger } from '../../services/lib/process/log.ts';
import { createRetrieval } from '../../services/lib/rag/search/retrieval.ts';
import { withBreaker } from '../../services/lib/rag/store/breaker.ts';
import { openStore } from '../../services/lib/rag/store/open-store.ts';
import { repoKey } from '../../services/lib/rag/store/repo-key.ts';
import { idAt } from '../../services/lib/rag/store/row.ts';
import type { Store, StoreUse } from '../../services/lib/rag/store/store.ts';
import type { IndexRequest } from '../../services/lib/rpc/gen/llavacode/v1/IndexRequest.ts';
import { jsonOfFiles } from '../support/archives.ts';
import { fakeIndexer, LIMITS, python, RememberingEncoder } from '../support/fake-indexer.ts';
import { indexTree } from '../support/index-tree.ts';
import { NO_OVERLAYS } from '../support/no-overlays.ts';
import { type FailoverTopology, startCluster, startReplicated, startSentinel } from '../support/redis-topologies.ts';

/** Longer than any failover takes. Tests wait for events, and the limit is only for a wait that would never end. */
const SOON = { timeout: 120_000, interval: 20 };
vi.setConfig({ testTimeout: 300_000, hookTimeout: 120_000 });
const NEVER = new AbortController().signal;

const toStop: (() => unknown)[] = [];
afterEach(async () => {
  for (const stop of toStop.splice(0).reverse()) await stop();
});
async function started(start: () => Promise<FailoverTopology>): Promise<FailoverTopology> {
  const redis = await start();
  toStop.push(() => redis.stop());
  return redis;
}
async function open(url: string, use?: StoreUse): Promise<Store> {
  const store = await openStore(url, use);
  toStop.push(() => store.close());
  await vi.waitFor(() => store.repositories('default'), SOON);
  return store;
}
async function tree(files: Record<string, string>): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-failover-'));
  toStop.push(() => rm(dir, { recursive: true, force: true }));
  for (const [name, text] of Object.entries(files)) await writeFile(join(dir, name), text);
  return dir;
}

/** Asserts that every chunk of the current version is there, with its vector, as a new client sees it. */
async function expectWhole(url: string, repo: string, version: string): Promise<void> {
  const store = await open(url);
  const { head, ids } = (await store.snapshot(repo))!;
  expect(head.version).toBe(version);
  const all = Array.from({ length: head.chunks }, (_, i) => idAt(ids, i));
  expect(all.length).toBeGreaterThan(0);
  expect(await store.entries(repo, all)).not.toContain(undefined);
  expect(await store.contents(repo, head.fingerprint, all)).not.toContain(undefined);
}

/** An encoder that lets the master change before the second batch of a run. */
function encoderWithFailover(redis: FailoverTopology): RememberingEncoder {
  const encoder = new RememberingEncoder();
  let batches = 0;
  encoder.before = async () => {
    if (++batches === 2) await redis.failOver();
  };
  return encoder;
}

/** Enough chunks for several batches. */
const LARGE = Object.fromEntries(Array.from({ length: 8 }, (_, i) => [`f${i}.py`, python(`f${i}`, 500)]));

describe.each([
  ['one address', startReplicated],
  ['sentinels', startSentinel],
  ['a cluster', () => startCluster(1)],
] as [string, () => Promise<FailoverTopology>][])('a failover of a store with %s', (_, start) => {
  test('an index run goes on at the new master', async () => {
    const redis = await started(start);
    const store = await open(redis.url, 'indexing');
    const dir = await tree(LARGE);
    const encoder = encoderWithFailover(redis);
    const report = await indexTree({ dir, repo: 'shop', store, encoder, options: LIMITS });
    expect(report.embedded).toBe(report.chunks);
    await expectWhole(redis.url, 'shop', report.version);
  });

  test('an upload goes on at the new master, and the next one is taken there', async () => {
    const redis = await started(start);
    const indexer = await fakeIndexer({}, redis.url);
    await vi.waitFor(() => indexer.store.repositories('default'), SOON);
    const upload = async (files: Record<string, string>) => {
      async function* body(): AsyncGenerator<IndexRequest> {
        yield { start: { requestId: 'r', tenant: 'default', repo: 'shop', format: 'json' } };
        yield { data: jsonOfFiles(files) };
      }
      let version = '';
      for await (const { report } of indexer.client.index(body(), NEVER)) version = report?.version ?? '';
      return version;
    };
    let batches = 0;
    indexer.encoder.before = async () => {
      if (++batches === 2) await redis.failOver();
    };
    const repo = repoKey('default', 'shop');
    await expectWhole(redis.url, repo, await upload(LARGE));
    await redis.failOver();
    await expectWhole(redis.url, repo, await upload({ 'a.py': python('a', 30) }));
  });

  test('a watch goes on at the new master', async () => {
    const redis = await started(start);
    const store = await open(redis.url, 'indexing');
    const dir = await tree({ 'a.py': python('a', 30) });
    const encoder = new RememberingEncoder();
    const stop = new AbortController();
    const versions: string[] = [];
    const index = treeIndexer(dir, LIMITS, {
      files: async () => (await store.head('shop'))?.files ?? 0,
      index: async (sources) => {
        const report = await indexSources({ repo: 'shop', sources, store, encoder, options: LIMITS });
        versions.push(report.version);
        return report;
      },
    });
    const failures: string[] = [];
    const onFailure = ({ code }: { code: string }) => failures.push(code);
    const watching = watchTree({
      dir,
      selecting: LIMITS,
      index,
      onFailure,
      signal: stop.signal,
      quietMs: 20,
      retryMs: 20,
    });
    await vi.waitUntil(() => versions.length > 0, SOON);
    await redis.failOver();
    await writeFile(join(dir, 'b.py'), python('b', 30));
    await vi.waitUntil(() => versions.at(-1) !== versions[0], SOON);
    stop.abort();
    await watching;
    // A run that was cut by the failover is tried again, and for nothing else.
    expect(failures.every((code) => code === 'store_unavailable' || code === 'index_locked')).toBe(true);
    await expectWhole(redis.url, 'shop', versions.at(-1) as string);
  });

  test('retrieval meets no failure but that the store is away, and finds what is published afterwards', async () => {
    const redis = await started(start);
    const writing = await open(redis.url, 'indexing');
    const encoder = new RememberingEncoder();
    const publish = async (name: string) => {
      const dir = await tree({ [`${name}.py`]: python(name, 60) });
      return (await indexTree({ dir, repo: 'shop', store: writing, encoder, options: LIMITS })).version;
    };
    const first = await publish('one');
    const reading = withBreaker(await open(redis.url), { budgetMs: 5_000, trialMs: 20 });
    const finder = new ContextFinder({
      retrieval: createRetrieval(reading, { queryLines: 10 }),
      retrievalBudgetMs: 5_000,
      denseBudgetMs: 5_000,
      contextFingerprint: 'context',
      withoutProjector: 'text',
      hidden: 2,
      queryLines: 10,
      overlays: NO_OVERLAYS,
      log: createLogger('test', 'silent'),
    });
    const rag = {
      repo: 'shop',
      mode: 'compressed',
      topK: 5,
      path: undefined,
      retriever: undefined,
      maxTextTokens: 9,
    } as const;
    const seen = new Set<string>();
    let live = true;
    const load = Promise.all(
      Array.from({ length: 4 }, async () => {
        while (live) {
          const { report } = await finder.find({ rag, tenant: 'default', before: 'one_7 two_7', after: '' }, NEVER);
          seen.add(report.degraded ?? (report.indexVersion as string));
          await new Promise((resolve) => setImmediate(resolve));
        }
      }),
    );
    await vi.waitUntil(() => seen.has(first), SOON);
    await redis.failOver();
    const second = await publish('two');
    await vi.waitUntil(() => seen.has(second), SOON);
    live = false;
    await load;
    const expected = [first, second, 'store_unavailable', 'over_budget'];
    expect([...seen].filter((each) => !expected.includes(each))).toEqual([]);
  });
});
