/** Who may index at the same time: slow uploads keep nobody out, and no tenant all others. */
import { expect, test, vi } from 'vitest';
import type { IndexRequest } from '../../services/lib/rpc/gen/llavacode/v1/IndexRequest.ts';
import { jsonOfFiles } from './archives.ts';
import { type FakeIndexer, fakeIndexer, python } from './fake-indexer.ts';

const SOON = { timeout: 10_000, interval: 10 };

/** @param sent awaited before the upload's last byte. */
async function send({ client }: FakeIndexer, tenant: string, repo: string, sent: Promise<void> = Promise.resolve()) {
  async function* upload(): AsyncGenerator<IndexRequest> {
    const bytes = jsonOfFiles({ 'a.py': python(repo, 12) });
    yield { start: { requestId: 'r', tenant, repo, format: 'json' } };
    yield { data: bytes.subarray(0, 10) };
    await sent;
    yield { data: bytes.subarray(10) };
  }
  let version = '';
  for await (const { report } of client.index(upload(), AbortSignal.timeout(30_000))) version = report?.version ?? '';
  return version;
}

/** A promise to be kept later. */
function later() {
  let keep = () => {};
  const promise = new Promise<void>((resolve) => {
    keep = resolve;
  });
  return { promise, keep };
}

test('slow uploads keep no other tenant out; of one tenant there are three at most', async () => {
  const indexer = await fakeIndexer();
  const { promise, keep } = later();
  const slow = [1, 2, 3].map((i) => send(indexer, 'slow', `r${i}`, promise));
  const other = send(indexer, 'slower', 'r', promise);
  await vi.waitFor(
    () =>
      expect(send(indexer, 'slow', 'r4')).rejects.toMatchObject({
        code: 'saturated',
        message: expect.stringContaining('3 repositories of this tenant'),
        retryAfterSeconds: 10,
      }),
    SOON,
  );
  expect(await send(indexer, 'quick', 'r')).not.toBe('');
  keep();
  for (const version of await Promise.all([...slow, other])) expect(version).not.toBe('');
  expect(await send(indexer, 'slow', 'r4')).not.toBe('');
});

test('what would be one run too many is refused before it is sent and after', async () => {
  const indexer = await fakeIndexer();
  const [late, encoding] = [later(), later()];
  const caught = send(indexer, 'late', 'r', late.promise).catch((error: unknown) => error);
  indexer.encoder.before = () => encoding.promise;
  const runs = ['a', 'a', 'b', 'b'].map((tenant, i) => send(indexer, tenant, `r${i}`));
  const describe = () => indexer.client.describe(AbortSignal.timeout(10_000));
  await vi.waitFor(async () => expect(await describe()).toMatchObject({ running: 4, limit: 4 }), SOON);
  const refusal = { code: 'saturated', message: expect.stringContaining('4 repositories are being indexed') };
  await expect(send(indexer, 'c', 'r', new Promise(() => {}))).rejects.toMatchObject(refusal);
  late.keep();
  expect(await caught).toMatchObject(refusal);
  encoding.keep();
  await Promise.all(runs);
  expect(await describe()).toMatchObject({ running: 0 });
});

test('a message that is neither start nor data is refused as such', async () => {
  const { client } = await fakeIndexer();
  async function* upload(): AsyncGenerator<IndexRequest> {
    const start = { requestId: 'r', tenant: 'a', repo: 'r', format: 'json' };
    yield { start };
    yield { start };
  }
  const first = client.index(upload(), AbortSignal.timeout(10_000))[Symbol.asyncIterator]().next();
  await expect(first).rejects.toMatchObject({
    code: 'invalid_request',
    message: expect.stringContaining('comes data'),
  });
});
