/** Real indexer processes (the built package, by the supervisor) that are killed, paused and set against each other. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { PACKAGE_ROOT } from '../../services/lib/process/config.ts';
import { idAt } from '../../services/lib/rag/row.ts';
import { openStore, type Store } from '../../services/lib/rag/store.ts';
import { connectIndexer, type IndexerClient } from '../../services/lib/rpc/contract.ts';
import type { IndexEvent__Output } from '../../services/lib/rpc/gen/llavacode/v1/IndexEvent.ts';
import type { IndexReport__Output } from '../../services/lib/rpc/gen/llavacode/v1/IndexReport.ts';
import type { IndexRequest } from '../../services/lib/rpc/gen/llavacode/v1/IndexRequest.ts';
import { ServiceProcess } from '../../services/supervisor.ts';
import { startRedis } from '../redis.ts';
import { jsonOfFiles } from './archives.ts';
import { python } from './fake-indexer.ts';

const NEVER = new AbortController().signal;
/** A lock outlives its dead holder by 15 s. */
const SOON = { timeout: 60_000, interval: 100 };
const REPO = 'acme/shop';
const SMALL = { 'a.py': python('small', 30) };
/** Several batches of chunks: there is time to interfere. */
const large = (name: string) =>
  Object.fromEntries(Array.from({ length: 40 }, (_, i) => [`${name}${i}.py`, python(`${name}${i}`, 200)]));

const toStop: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const stop of toStop.splice(0).reverse()) await stop();
});

const PLACES = {
  async lmdb() {
    const dir = await mkdtemp(join(tmpdir(), 'llavacode-processes-'));
    toStop.push(() => rm(dir, { recursive: true, force: true }));
    return `lmdb:${dir}`;
  },
  async redis() {
    const redis = await startRedis();
    toStop.push(() => redis.stop());
    return redis.url;
  },
};

interface Indexer {
  readonly process: ServiceProcess;
  readonly client: IndexerClient;
}

async function startIndexer(store: string, name: string): Promise<Indexer> {
  const logs = await mkdtemp(join(tmpdir(), 'llavacode-logs-'));
  const model = join(PACKAGE_ROOT, 'models', 'tiny-coder');
  const flags = { model, store, port: 0, metricsPort: 0, threads: 1, drainTimeoutMs: 5_000 };
  const process = new ServiceProcess(name, 'indexer', flags, { logs });
  await process.start();
  const client = connectIndexer(process.address);
  toStop.push(async () => {
    client.close();
    await process.stop();
    await rm(logs, { recursive: true, force: true });
  });
  return { process, client };
}

async function reader(url: string): Promise<Store> {
  const store = await openStore(url);
  toStop.push(() => store.close());
  return store;
}

async function* upload(files: Record<string, string>): AsyncGenerator<IndexRequest> {
  yield { start: { requestId: 'r', tenant: 'default', repo: REPO, format: 'json' } };
  yield { data: jsonOfFiles(files) };
}

async function index({ client }: Indexer, files: Record<string, string>): Promise<IndexReport__Output> {
  let report: IndexReport__Output | null | undefined;
  for await (const event of client.index(upload(files), NEVER)) report = event.report ?? report;
  return report as IndexReport__Output;
}

/** Begins a run; returns when some of it is stored, with what comes of it. */
async function underWay({ client }: Indexer, files: Record<string, string>) {
  const events = client.index(upload(files), NEVER)[Symbol.asyncIterator]();
  let event: IteratorResult<IndexEvent__Output, unknown>;
  do event = await events.next();
  while (!event.done && (event.value.progress?.embedded ?? 0) === 0);
  const rest = (async () => {
    for (let next = await events.next(); !next.done; next = await events.next());
    return 'completed';
  })();
  return rest.catch((error: { code: string }) => error.code);
}

/** Every chunk that the current version names is there, with its vector. */
async function expectWhole(store: Store): Promise<void> {
  const { head, ids } = (await store.snapshot(REPO))!;
  const all = Array.from({ length: head.chunks }, (_, i) => idAt(ids, i));
  expect(all.length).toBeGreaterThan(0);
  expect(await store.entries(REPO, all)).not.toContain(undefined);
  expect(await store.contents(REPO, head.fingerprint, all)).not.toContain(undefined);
}

describe.each(Object.entries(PLACES))('indexers on %s', (_, place) => {
  test('killed in the middle, one leaves the old version, and the next goes on from there', async () => {
    const url = await place();
    const [store, indexer] = await Promise.all([reader(url), startIndexer(url, 'killed')]);
    const { version } = await index(indexer, SMALL);
    const rest = underWay(indexer, large('f'));
    const outcome = await Promise.race([rest.then((running) => running), SOON && rest]);
    expect(outcome).toBeDefined();
    expect((await store.head(REPO))?.version).toBe(version);
  });
});
