/**
 * Real processes (the built package, under the supervisor): indexers that are killed, paused, restarted, or compete.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import type { IndexReport } from '../../services/indexer/index-run.ts';
import type { ServingError } from '../../services/lib/process/errors.ts';
import { openStore } from '../../services/lib/rag/store/open-store.ts';
import { idAt } from '../../services/lib/rag/store/row.ts';
import type { Store } from '../../services/lib/rag/store/store.ts';
import { connectIndexer, type IndexerClient } from '../../services/lib/rpc/contract.ts';
import type { IndexReport__Output } from '../../services/lib/rpc/gen/llavacode/v1/IndexReport.ts';
import type { IndexRequest } from '../../services/lib/rpc/gen/llavacode/v1/IndexRequest.ts';
import { ServiceProcess, startSystem } from '../../services/supervisor.ts';
import { jsonOfFiles } from '../support/archives.ts';
import { python } from '../support/fake-indexer.ts';
import { startRedis } from '../support/redis.ts';
import { smallestBundle } from '../support/smallest-bundle.ts';

const NEVER = new AbortController().signal;
/** Longer than the 15 s for which a lock outlives its dead holder. */
const SOON = { timeout: 60_000, interval: 100 };
/** For six processes that start on a machine that others use too. */
const PATIENT = { timeout: 180_000 };
const REPO = 'acme/shop';
const SMALL = { 'a.py': python('small', 30) };
/** Several batches of chunks, so that there is time to interfere. */
const large = (name: string, count = 40) =>
  Object.fromEntries(Array.from({ length: count }, (_, i) => [`${name}${i}.py`, python(`${name}${i}`, 200)]));

/** Registers what is stopped when a test ends, in reverse order. */
type Defer = (stop: () => Promise<unknown>) => void;

const PLACES = {
  async lmdb(defer: Defer) {
    const dir = await mkdtemp(join(tmpdir(), 'llavacode-processes-'));
    defer(() => rm(dir, { recursive: true, force: true }));
    return `lmdb:${dir}`;
  },
  async redis(defer: Defer) {
    const redis = await startRedis();
    defer(() => redis.stop());
    return redis.url;
  },
};

interface Indexer {
  readonly process: ServiceProcess;
  readonly client: IndexerClient;
}

async function startIndexer(store: string, name: string, defer: Defer, into?: string): Promise<Indexer> {
  const logs = into ?? (await mkdtemp(join(tmpdir(), 'llavacode-logs-')));
  const flags = { model, store, port: 0, metricsPort: 0, threads: 1, drainTimeoutMs: 5_000 };
  const service = new ServiceProcess(name, 'indexer', flags, { logs });
  await service.start();
  const client = connectIndexer(service.address);
  defer(async () => {
    client.close();
    await service.stop();
    await rm(logs, { recursive: true, force: true });
  });
  return { process: service, client };
}

async function reader(url: string, defer: Defer): Promise<Store> {
  const store = await openStore(url);
  defer(() => store.close());
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

/** Begins a run, and returns a promise of its end as soon as some of it is stored. */
async function underWay({ client }: Indexer, files: Record<string, string>) {
  const events = client.index(upload(files), NEVER)[Symbol.asyncIterator]();
  for (let embedded = 0; embedded === 0; ) {
    const event = await events.next();
    embedded = event.value?.progress?.embedded ?? 0;
    if (event.done || event.value.report) throw new Error('the run was over before it could be interfered with');
  }
  const rest = async () => {
    for (let next = await events.next(); !next.done; ) next = await events.next();
    return 'completed';
  };
  return { outcome: rest().catch((error: ServingError) => error.code) };
}

/** Asserts that every chunk that the current version names is there, with its vector. */
async function expectWhole(store: Store): Promise<void> {
  const { head, ids } = (await store.snapshot(REPO))!;
  const all = Array.from({ length: head.chunks }, (_, i) => idAt(ids, i));
  expect(all.length).toBeGreaterThan(0);
  expect(await store.entries(REPO, all)).not.toContain(undefined);
  expect(await store.contents(REPO, head.fingerprint, all)).not.toContain(undefined);
}

let folder: string;
let model: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'llavacode-bundle-'));
  model = await smallestBundle(folder);
});
afterAll(() => rm(folder, { recursive: true, force: true }));

describe.each(Object.entries(PLACES))('indexers on %s', (_, place) => {
  // Tests run side by side, since they mostly wait for a lock to run out.
  test.concurrent(
    'an indexer that is killed in the middle leaves the old version, and the next one goes on from there',
    PATIENT,
    async (context) => {
      const defer: Defer = (stop) => context.onTestFinished(async () => void (await stop()));
      const url = await place(defer);
      const store = await reader(url, defer);
      const indexer = await startIndexer(url, 'killed', defer);
      const { version } = await index(indexer, SMALL);
      const { outcome } = await underWay(indexer, large('f'));
      process.kill(indexer.process.pid as number, 'SIGKILL');
      expect(await outcome).toBe('worker_lost');
      expect((await store.head(REPO))?.version).toBe(version);
      await expectWhole(store);
      // The supervisor starts it again, and the lock of the dead run must run out first.
      const report = await vi.waitFor(() => index(indexer, large('f')), SOON);
      expect(report.reused).toBeGreaterThan(0);
      expect((await store.head(REPO))?.version).toBe(report.version);
      await expectWhole(store);
    },
  );

  test.concurrent(
    'two indexers at once leave one whole version, and one that slept beyond its lock changes nothing',
    PATIENT,
    async (context) => {
      const defer: Defer = (stop) => context.onTestFinished(async () => void (await stop()));
      const url = await place(defer);
      const store = await reader(url, defer);
      const sleeper = await startIndexer(url, 'sleeper', defer);
      const other = await startIndexer(url, 'other', defer);
      const racing = [index(sleeper, large('a')), index(other, large('b'))];
      const raced = await Promise.allSettled(racing);
      const codes = raced.map((each) =>
        each.status === 'fulfilled' ? 'completed' : (each.reason as ServingError).code,
      );
      expect(codes.every((code) => code === 'completed' || code === 'index_locked')).toBe(true);
      const versions = raced.flatMap((each) => (each.status === 'fulfilled' ? [each.value.version] : []));
      expect(versions).toContain((await store.head(REPO))?.version);
      await expectWhole(store);

      const { outcome } = await underWay(sleeper, large('c'));
      process.kill(sleeper.process.pid as number, 'SIGSTOP');
      const report = await vi.waitFor(() => index(other, large('d')), SOON);
      process.kill(sleeper.process.pid as number, 'SIGCONT');
      // Either it gets to write, or its caller has given up a peer that was silent for so long.
      expect(['index_locked', 'worker_lost']).toContain(await outcome);
      await vi.waitUntil(async () => (await sleeper.client.describe(NEVER)).running === 0, SOON);
      expect((await store.head(REPO))?.version).toBe(report.version);
      await expectWhole(store);
      expect(await index(other, large('d'))).toMatchObject({ changed: false, embedded: 0 });
    },
  );
});

test(
  'the supervisor has an indexer index a folder of this machine, hears of it, and has its reason where it cannot',
  PATIENT,
  async (context) => {
    const defer: Defer = (stop) => context.onTestFinished(async () => void (await stop()));
    const dir = await mkdtemp(join(tmpdir(), 'llavacode-tree-'));
    defer(() => rm(dir, { recursive: true, force: true }));
    await Promise.all(Object.entries(large('f', 4)).map(([name, text]) => writeFile(join(dir, name), text)));
    const url = await PLACES.lmdb(defer);
    const store = await reader(url, defer);
    const indexer = await startIndexer(url, 'tasks', defer);
    const onProgress = vi.fn();
    const task = { dir, repo: REPO };
    const report = (await indexer.process.perform(task, onProgress, NEVER)) as IndexReport;
    expect(report).toMatchObject({ repo: REPO, files: 4, changed: true });
    expect((await store.head(REPO))?.version).toBe(report.version);
    expect(onProgress).toHaveBeenCalledWith(expect.objectContaining({ files: 4 }));
    expect(await indexer.process.perform(task, onProgress, NEVER)).toMatchObject({ changed: false, embedded: 0 });
    const missing = { ...task, dir: join(dir, 'missing') };
    const failure = { code: 'invalid_request', message: expect.stringContaining(`cannot index ${missing.dir}`) };
    await expect(indexer.process.perform(missing, onProgress, NEVER)).rejects.toMatchObject(failure);
    await Promise.all(Object.entries(large('g', 100)).map(([name, text]) => writeFile(join(dir, name), text)));
    let begun = () => {};
    const hasBegun = new Promise<void>((resolve) => {
      begun = resolve;
    });
    const cut = expect(indexer.process.perform(task, begun, NEVER)).rejects.toMatchObject({ code: 'draining' });
    await hasBegun;
    await indexer.process.stop();
    await cut;
    await (await store.lock(REPO, 1_000)).release();
    await expect(indexer.process.perform(task, begun, NEVER)).rejects.toMatchObject({ code: 'worker_lost' });
  },
);

describe('a rolling restart', () => {
  const urlOf = (url: string, repo: string) => `${url}/v1/repos/${repo}`;
  const put = (files: Record<string, string>) => ({
    method: 'PUT',
    headers: { 'content-type': 'application/json', accept: 'text/event-stream' },
    body: jsonOfFiles(files),
  });

  /** Begins an upload, and returns its further events as soon as some of it is stored. */
  async function begun(url: string, repo: string, files: Record<string, string>) {
    const events = (await fetch(urlOf(url, repo), put(files))).body!.pipeThrough(new TextDecoderStream()).getReader();
    let text = '';
    const read = async () => {
      const { value, done } = await events.read();
      text += value ?? '';
      return !done;
    };
    while (!/"embedded":[1-9]/.test(text)) if (!(await read())) throw new Error(`it ended before: ${text}`);
    const rest = async () => {
      while (await read());
      return text;
    };
    return { events: rest() };
  }

  /** Acts as a client behind a load balancer, which asks again if a gateway drains or is away. */
  const ask = (url: string, repo: string, request: RequestInit) =>
    vi.waitFor(async () => {
      const text = await (await fetch(urlOf(url, repo), request)).text();
      if (text.includes('"code":"draining"')) throw new Error(text);
      return text;
    }, SOON);

  /** Uploads and removes repositories, one after the other. */
  async function send(url: string, going: () => boolean): Promise<void> {
    for (let i = 0; going(); i++) {
      expect(await ask(url, `r${i}`, put(SMALL))).toContain('"object":"repo.index"');
      expect(await ask(url, `r${i}`, { method: 'DELETE' })).toContain('"deleted":true');
    }
  }

  test('a rolling restart of indexer and gateway fails no upload and no removal', PATIENT, async (context) => {
    const defer: Defer = (stop) => context.onTestFinished(async () => void (await stop()));
    const logs = await mkdtemp(join(tmpdir(), 'llavacode-logs-'));
    defer(() => rm(logs, { recursive: true, force: true }));
    const flags = { model, threads: 1, store: await PLACES.lmdb(defer), drainTimeoutMs: 120_000 };
    const { url, processes, close } = await startSystem({
      ...{ mode: 'colocated', prefill: 1, decode: 0, logs },
      gateway: { ...flags, port: 0, connectTimeoutMs: 60_000 },
      workers: { model, threads: 1, slots: 2, capacity: 256 },
      indexer: flags,
    });
    defer(close);
    for (const role of ['indexer', 'gateway']) {
      const { events } = await begun(url, role, large(role, 20));
      let restarting = true;
      const restarted = processes.find(({ name }) => name.startsWith(role))!.restart();
      const over = restarted.finally(() => {
        restarting = false;
      });
      const [log] = await Promise.all([events, send(url, () => restarting), over]);
      expect(log).toContain('"object":"repo.index"');
    }
  });
});

test(
  'llavacode index stops without a complaint when it is interrupted, and leaves no lock',
  PATIENT,
  async (context) => {
    const defer: Defer = (stop) => context.onTestFinished(async () => void (await stop()));
    const dir = await mkdtemp(join(tmpdir(), 'llavacode-tree-'));
    defer(() => rm(dir, { recursive: true, force: true }));
    await Promise.all(Object.entries(large('f', 100)).map(([name, text]) => writeFile(join(dir, name), text)));
    const url = await PLACES.lmdb(defer);
    const settings = [
      '--name',
      'shop',
      '--tenant',
      'acme',
      '--path',
      dir,
      '--model',
      model,
      '--store',
      url,
      '--threads',
      '1',
    ];
    const child = spawn(process.execPath, ['dist/services/cli.js', 'index', ...settings], { stdio: 'pipe' });
    defer(async () => child.kill('SIGKILL'));
    const store = await reader(url, defer);
    let said = '';
    child.stderr.on('data', (text) => {
      said += text;
    });
    const ended = once(child, 'exit');
    await expect.poll(() => said, SOON).toContain('indexing');
    child.kill('SIGINT');
    expect(await ended).toEqual([130, null]);
    expect(said).not.toContain('bug');
    await (await store.lock(REPO, 1_000)).release();
  },
);

test('a log that cannot be written ends neither the process nor its supervisor', PATIENT, async (context) => {
  const defer: Defer = (stop) => context.onTestFinished(async () => void (await stop()));
  const logs = await mkdtemp(join(tmpdir(), 'llavacode-logs-'));
  defer(() => rm(logs, { recursive: true, force: true }));
  await symlink('/dev/full', join(logs, 'unlogged.log'));
  const said = vi.spyOn(process.stderr, 'write').mockReturnValue(true);
  defer(async () => said.mockRestore());
  const indexer = await startIndexer(await PLACES.lmdb(defer), 'unlogged', defer, logs);
  await expect.poll(() => said.mock.calls.join(), SOON).toContain('unlogged.log: no more is written there');
  expect((await index(indexer, SMALL)).chunks).toBeGreaterThan(0);
});
