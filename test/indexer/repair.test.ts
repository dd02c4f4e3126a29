/** Rows that were damaged in the store are written again by the next index run. Tested on both stores. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { open } from 'lmdb';
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest';
import { indexSources } from '../../services/indexer/index-run.ts';
import { noSkips } from '../../services/indexer/selection.ts';
import type { Sources } from '../../services/indexer/sources.ts';
import { type IndexJob, VersionBuilder } from '../../services/indexer/version-builder.ts';
import { openStore } from '../../services/lib/rag/store/open-store.ts';
import { keysOf } from '../../services/lib/rag/store/redis-keys.ts';
import { idAt } from '../../services/lib/rag/store/row.ts';
import type { ChunkRow, IndexWriter, LeftOutRow, Store } from '../../services/lib/rag/store/store.ts';
import { RedisConnection } from '../../services/lib/redis/connection.ts';
import { MemoryStore, FINGERPRINT as STORED_BY } from '../support/memory-store.ts';
import { startRedis } from '../support/redis.ts';

const FINGERPRINT = 'f'.repeat(64);
const encoder = {
  fingerprint: FINGERPRINT,
  hidden: 2,
  softPerChunk: 1 as const,
  project: async () => [],
  encode: async (chunks: readonly { readonly text: string }[]) =>
    chunks.map(({ text }) => ({ vector: Float32Array.of(text.length, 1), fellBack: false })),
};

const TEXTS = new Map(
  ['a.py', 'b.py', 'c.py'].map((path) => [
    path,
    Array.from({ length: 25 }, (_, i) => `${path[0]}_${i} = 1`).join('\n'),
  ]),
);

/** @param changed brings these paths alone into the current version. */
function sourcesOf(changed?: readonly string[]): Sources {
  const read = async (path: string) => ({ text: TEXTS.get(path)! });
  const paths = changed ?? [...TEXTS.keys()];
  return { paths, read, skipped: noSkips(), ...(changed && { replaced: new Set(changed) }) } as unknown as Sources;
}

/** Replaces a stored value by what is made of it. */
type Damage = (repo: string, id: string, make: (bytes: Buffer) => Buffer) => Promise<void>;

interface Place {
  readonly url: string;
  readonly damageEntry: Damage;
  readonly damageContent: Damage;
  stop(): Promise<unknown>;
}

async function lmdb(): Promise<Place> {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-repair-'));
  const damage = async (name: string, key: readonly string[], make: (bytes: Buffer) => Buffer) => {
    const env = open({ path: dir, noSubdir: false, maxDbs: 8 });
    const database = env.openDB<Buffer, string[]>({ name, encoding: 'binary' });
    await database.put([...key], make(database.get([...key])!));
    await env.close();
  };
  return {
    url: `lmdb:${dir}`,
    damageEntry: (repo, id, make) => damage('1:chunks', [repo, id], make),
    damageContent: (repo, id, make) => damage('1:rows', [repo, FINGERPRINT, id], make),
    stop: () => rm(dir, { recursive: true, force: true }),
  };
}

async function redis(): Promise<Place> {
  const server = await startRedis();
  const admin = new RedisConnection(server.url);
  const damage = async (key: string, id: string, make: (bytes: Buffer) => Buffer) => {
    const field = Buffer.from(id, 'hex');
    const bytes = await admin.run((client) => client.hgetBuffer(key, field));
    await admin.run((client) => client.hset(key, field, make(bytes!)));
  };
  return {
    url: server.url,
    damageEntry: (repo, id, make) => damage(keysOf(repo).chunks, id, make),
    damageContent: (repo, id, make) => damage(keysOf(repo).rows(FINGERPRINT), id, make),
    stop: async () => {
      admin.close();
      await server.stop();
    },
  };
}

const short = (bytes: Buffer) => bytes.subarray(0, 5);
const empty = () => Buffer.alloc(0);
const otherSizes = (bytes: Buffer) => Buffer.concat([Buffer.from([0xff, 0xff]), bytes.subarray(2)]);
const notFinite = (bytes: Buffer) => Buffer.concat([bytes.subarray(0, 8), Buffer.from([0, 0x7c]), bytes.subarray(10)]);
const notUtf8 = (bytes: Buffer) => Buffer.concat([bytes, Buffer.from([0xc3])]);

describe.each(Object.entries({ lmdb, redis }))('in the %s store', (_, start) => {
  let place: Place;
  let store: Store;
  let repo: string;
  let repos = 0;
  beforeAll(async () => {
    place = await start();
    store = await openStore(place.url, 'indexing');
  });
  afterAll(async () => {
    await store.close();
    await place.stop();
  });
  beforeEach(() => {
    repo = `shop-${repos++}`;
  });

  const index = (changed?: readonly string[]) =>
    indexSources({
      repo,
      sources: sourcesOf(changed),
      store,
      encoder,
      options: { chunkLines: 10, chunkStride: 5 } as never,
    });
  const served = async () => {
    const { head, ids } = (await store.snapshot(repo))!;
    const all = Array.from({ length: head.chunks }, (_, i) => idAt(ids, i));
    const leftOut: string[] = [];
    const onLeftOut = ({ id }: LeftOutRow) => leftOut.push(id);
    const entries = await store.entries(repo, all, { onLeftOut });
    const contents = await store.contents(repo, FINGERPRINT, all, { onLeftOut });
    return { all, entries, contents, leftOut };
  };

  test.each([
    ['a content that is cut', 'damageContent', short],
    ['a content of which nothing is left', 'damageContent', empty],
    ['a content with wrong sizes', 'damageContent', otherSizes],
    ['a vector that is not finite', 'damageContent', notFinite],
    ['a text that is not UTF-8', 'damageContent', notUtf8],
    ['an entry that is cut', 'damageEntry', short],
    ['an entry that is not UTF-8', 'damageEntry', notUtf8],
  ] as const)('%s is written again by the next run, and serves as before', async (_, damage, make) => {
    await index();
    const before = await served();
    const [damaged] = before.all.slice(4);
    await place[damage](repo, damaged!, make);
    expect(await served()).not.toEqual(before);
    const report = await index();
    expect(report).toMatchObject({ embedded: 1, reused: before.all.length - 1, changed: false });
    expect(await served()).toEqual(before);
    expect(await index()).toMatchObject({ embedded: 0 });
  });

  test('a change set writes a damaged vector again, from the text beside it', async () => {
    await index();
    const before = await served();
    const damaged = before.all[before.entries.findIndex((entry) => entry?.path === 'b.py')]!;
    await place.damageContent(repo, damaged, notFinite);
    expect(await index(['a.py'])).toMatchObject({ embedded: 1 });
    expect(await served()).toEqual(before);
  });

  test('a change set beside a text that is lost is refused, and a run over all files mends it', async () => {
    await index();
    const before = await served();
    const damaged = before.all[before.entries.findIndex((entry) => entry?.path === 'b.py')]!;
    await place.damageContent(repo, damaged, short);
    await expect(index(['a.py'])).rejects.toMatchObject({ code: 'store_invalid' });
    expect(await index()).toMatchObject({ embedded: 1 });
    expect(await served()).toEqual(before);
  });
});

test('rows in Redis without a checksum, from an earlier release, count as stored if their sizes are right', async () => {
  const place = await redis();
  onTestFinished(async () => void (await place.stop()));
  const store = await openStore(place.url, 'indexing');
  onTestFinished(() => store.close());
  const admin = new RedisConnection(place.url);
  onTestFinished(() => admin.close());
  const options = { chunkLines: 10, chunkStride: 5 } as never;
  const index = () => indexSources({ repo: 'old', sources: sourcesOf(), store, encoder, options });
  const { chunks } = await index();
  await admin.run((client) => client.del(keysOf('old').sums(FINGERPRINT)));
  expect(await index()).toMatchObject({ embedded: 0 });
  const { ids } = (await store.snapshot('old'))!;
  await place.damageContent('old', idAt(ids, 0), otherSizes);
  await place.damageContent('old', idAt(ids, 1), short);
  expect(await index()).toMatchObject({ embedded: 2, reused: chunks - 2 });
});

test('damage to a text that is still readable does not become a sound row: a change set is refused, a whole run goes on', async () => {
  const store = new MemoryStore();
  const rows = store.publishFiles('r', { 'a.py': 'print("hello")\n', 'b.py': 'x = 1\n' });
  const { id } = rows[0]!.chunk;
  const content = store.contentBytes.get(`r ${id}`)!;
  content.write('J', content.indexOf('hello')); // a checksum has found it, so that the row does not count as stored
  const stored = new Set(rows.map(({ chunk }) => chunk.id).filter((other) => other !== id));
  const put: string[] = [];
  const writer = {
    put: async (_: string, written: readonly ChunkRow[]) => void put.push(...written.map(({ chunk }) => chunk.id)),
  } as unknown as IndexWriter;
  const encode = async (chunks: readonly unknown[]) =>
    chunks.map(() => ({ vector: new Float32Array(2), fellBack: false }));
  const build = (sources: object) => {
    const read = async () => ({ text: 'x = 2\n' });
    const encoder = { fingerprint: STORED_BY, hidden: 2, encode };
    const options = { chunkLines: 10, chunkStride: 10 };
    const job = { repo: 'r', store, encoder, options, sources: { paths: ['b.py'], read, ...sources } };
    return new VersionBuilder(job as unknown as IndexJob, writer, stored).build();
  };
  await expect(build({ replaced: new Set(['b.py']) })).rejects.toMatchObject({ code: 'store_invalid' });
  await build({ unreadable: new Set(['a.py']) });
  expect(put).not.toContain(id);
});
