/** Runs at the same time: neither slow uploads nor one tenant keep others out. A drain lets runs finish. */
import { expect, test, vi } from 'vitest';
import { repoKey } from '../../services/lib/rag/store/repo-key.ts';
import { decodeHalves } from '../../services/lib/rag/store/vector-codec.ts';
import type { IndexRequest } from '../../services/lib/rpc/gen/llavacode/v1/IndexRequest.ts';
import { jsonOfFiles } from '../support/archives.ts';
import { type FakeIndexer, fakeIndexer, python } from '../support/fake-indexer.ts';

const SOON = { timeout: 120_000, interval: 10 };
vi.setConfig({ testTimeout: 300_000 });

/** @param sent is awaited before the upload's last byte. */
async function send(
  { client }: FakeIndexer,
  tenant: string,
  repo: string,
  sent: Promise<void> = Promise.resolve(),
  content = repo,
) {
  async function* upload(): AsyncGenerator<IndexRequest> {
    const bytes = jsonOfFiles({ 'a.py': python(content, 12) });
    yield { start: { requestId: 'r', tenant, repo, format: 'json' } };
    yield { data: bytes.subarray(0, 10) };
    await sent;
    yield { data: bytes.subarray(10) };
  }
  let version = '';
  for await (const { report } of client.index(upload(), AbortSignal.timeout(240_000))) version = report?.version ?? '';
  return version;
}

/** A promise that the test keeps later. */
function later() {
  let keep = () => {};
  const promise = new Promise<void>((resolve) => {
    keep = resolve;
  });
  return { promise, keep };
}

test('slow uploads keep no other tenant out, and one tenant has at most three at a time', async () => {
  const indexer = await fakeIndexer();
  const { promise, keep } = later();
  const slow = [1, 2, 3].map((i) => send(indexer, 'slow', `r${i}`, promise));
  const other = send(indexer, 'slower', 'r', promise);
  await vi.waitFor(
    () =>
      expect(send(indexer, 'slow', 'r4')).rejects.toMatchObject({
        code: 'saturated',
        message: expect.stringContaining('indexing 3 repositories already'),
        retryAfterSeconds: 10,
      }),
    SOON,
  );
  expect(await send(indexer, 'quick', 'r')).not.toBe('');
  keep();
  for (const version of await Promise.all([...slow, other])) expect(version).not.toBe('');
  expect(await send(indexer, 'slow', 'r4')).not.toBe('');
});

test('an upload that would be one run too many is refused before it is sent, and after', async () => {
  const indexer = await fakeIndexer();
  const [late, encoding] = [later(), later()];
  const caught = send(indexer, 'late', 'r', late.promise).catch((error: unknown) => error);
  indexer.encoder.before = () => encoding.promise;
  const runs = ['a', 'a', 'b', 'b'].map((tenant, i) => send(indexer, tenant, `r${i}`));
  const describe = () => indexer.client.describe(AbortSignal.timeout(240_000));
  await vi.waitFor(async () => expect(await describe()).toMatchObject({ running: 4, limit: 4 }), SOON);
  const refusal = { code: 'saturated', message: expect.stringContaining('4 repositories are being indexed') };
  await expect(send(indexer, 'c', 'r', new Promise(() => {}))).rejects.toMatchObject(refusal);
  late.keep();
  expect(await caught).toMatchObject(refusal);
  encoding.keep();
  await Promise.all(runs);
  expect(await describe()).toMatchObject({ running: 0 });
});

test('a drain lets a run finish; a gateway that asks meanwhile learns of it, or waits for the next indexer', async () => {
  const indexer = await fakeIndexer();
  const [arrived, encoding] = [later(), later()];
  let calls = 0;
  indexer.encoder.before = () => {
    calls++;
    arrived.keep();
    return encoding.promise;
  };
  const running = send(indexer, 'a', 'running');
  await arrived.promise;
  const stopped = indexer.stop();
  const describe = () => indexer.client.describe(AbortSignal.timeout(240_000));
  await expect(describe()).rejects.toMatchObject({ code: 'draining' });
  // The upload was on its way already: nobody else could take it.
  const late = send(indexer, 'a', 'late');
  await vi.waitUntil(() => calls === 2, SOON);
  encoding.keep();
  for (const version of [await running, await late]) expect(version).not.toBe('');
  await stopped;
  const next = describe();
  await indexer.restart();
  expect(await next).toMatchObject({ running: 0 });
});

test('a run that is cut gives back its lock and leaves the index as it was', async () => {
  const indexer = await fakeIndexer();
  const version = await send(indexer, 'a', 'r');
  const arrived = later();
  indexer.encoder.before = (signal) => {
    arrived.keep();
    return new Promise((_, reject) => signal?.addEventListener('abort', () => reject(signal.reason)));
  };
  const running = send(indexer, 'a', 'r', undefined, 'changed');
  await arrived.promise;
  const stopped = indexer.stop(AbortSignal.timeout(10));
  await expect(running).rejects.toMatchObject({ code: 'worker_lost' });
  await stopped;
  const key = repoKey('a', 'r');
  expect((await indexer.store.head(key))?.version).toBe(version);
  await (await indexer.store.lock(key, 10_000)).release();
});

test('a message that is neither start nor data is refused as such', async () => {
  const { client } = await fakeIndexer();
  async function* upload(): AsyncGenerator<IndexRequest> {
    const start = { requestId: 'r', tenant: 'a', repo: 'r', format: 'json' };
    yield { start };
    yield { start };
  }
  const first = client.index(upload(), AbortSignal.timeout(240_000))[Symbol.asyncIterator]().next();
  await expect(first).rejects.toMatchObject({
    code: 'invalid_request',
    message: expect.stringContaining('must be data'),
  });
});

test('chunks that are not indexed are encoded as those of an index are, in their order', async () => {
  const { client } = await fakeIndexer();
  const chunks = ['a = 1', 'bb = 22'].map((text) => ({ path: 'a.py', text }));
  const { fingerprint, vectors } = await client.encode({ chunks }, AbortSignal.timeout(60_000));
  expect(fingerprint).toBe('context');
  expect(decodeHalves(vectors)).toEqual(Float32Array.of(5, 1, 7, 1));
  expect(Buffer.from(vectors).toString('hex')).toBe('0045003c0047003c'); // the bytes of before
});

test('a call of Encode that is too large is refused, and too many at a time are told to come again', async () => {
  const indexer = await fakeIndexer();
  const encode = (texts: string[]) =>
    indexer.client.encode({ chunks: texts.map((text) => ({ path: 'a.py', text })) }, AbortSignal.timeout(60_000));
  await expect(encode(Array(65).fill('x'))).rejects.toMatchObject({ code: 'invalid_request' });
  await expect(encode(['x'.repeat(65_537)])).rejects.toMatchObject({ code: 'invalid_request' });
  const { promise, keep } = later();
  let waiting = 0;
  indexer.encoder.before = async () => {
    waiting++;
    await promise;
  };
  const running = Array.from({ length: 8 }, () => encode(['x']));
  await vi.waitUntil(() => waiting === 8, SOON);
  await expect(encode(['x'])).rejects.toMatchObject({ code: 'saturated' });
  keep();
  await Promise.all(running);
  await expect(encode(['x'])).resolves.toBeDefined();
});
