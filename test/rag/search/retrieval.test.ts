import { createHash } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type Chunk, chunkFile, identifiers } from '../../../services/lib/rag/chunk.ts';
import type { RetrieverName } from '../../../services/lib/rag/retriever-name.ts';
import type { QueryEncoder } from '../../../services/lib/rag/search/query-encoder.ts';
import { createRetrieval, type Retrieved, type WarmableRetrieval } from '../../../services/lib/rag/search/retrieval.ts';
import { openStore } from '../../../services/lib/rag/store/open-store.ts';
import { NO_VECTORS, packIds, withEmbeddings } from '../../../services/lib/rag/store/row.ts';
import type { IndexHead, Store } from '../../../services/lib/rag/store/store.ts';

const REPO = 'acme/shop';
const FINGERPRINT = 'f'.repeat(64);
const NEVER = new AbortController().signal;
const FILES = {
  'cart.py': 'class Cart:\n    def add(self, item, quantity):\n        self.lines.append(CartLine(item, quantity))',
  'pricing.py': 'def line_total(line):\n    return line.item.price * line.quantity',
  'notes.md': 'nothing shared here',
};

let dir: string;
let store: Store;
let retrieval: WarmableRetrieval;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-retrieval-'));
  store = await openStore(`lmdb:${dir}`);
  retrieval = createRetrieval(store, { queryLines: 10 });
});
afterEach(async () => {
  await store.close();
  await rm(dir, { recursive: true, force: true });
});

/** Publishes files as version `version`. The vector of a chunk is the length of its text. */
async function publish(files: Record<string, string>, version: string, { sweep = true } = {}) {
  const chunks: Chunk[] = Object.entries(files).flatMap(([path, text]) =>
    chunkFile(path, text, { chunkLines: 10, chunkStride: 5 }),
  );
  const writer = await store.lock(REPO, 30_000);
  await writer.put(
    FINGERPRINT,
    chunks.map((chunk) => ({ chunk, vector: Float32Array.of(chunk.text.length, 0.25) })),
  );
  const head = {
    version: version.repeat(16),
    fingerprint: FINGERPRINT,
    hidden: 2,
    files: Object.keys(files).length,
    chunks: chunks.length,
    languages: {},
    indexedAt: new Date(0).toISOString(),
  };
  await writer.publish({ head, ids: packIds(chunks.map((chunk) => chunk.id)) });
  if (sweep) await writer.sweep();
  await writer.release();
}

const query = (before: string, more: { path?: string; after?: string; topK?: number } = {}) => ({
  repo: REPO,
  before,
  after: more.after ?? '',
  path: more.path,
  topK: more.topK ?? 10,
});

test('retrieval finds the best chunks with all that a prompt needs, and none that shares nothing', async () => {
  await publish(FILES, '1');
  const found = await retrieval.retrieve(
    query('total = line_total(line)\n', { after: 'cart.add(item, quantity)' }),
    NEVER,
  );
  expect(found).toMatchObject({ indexVersion: '1'.repeat(16), fingerprint: FINGERPRINT });
  expect(found.chunks.map((chunk) => chunk.path)).toEqual(['pricing.py', 'cart.py']);
  // {total, line_total, line, cart, add, item, quantity} against {def, line_total, line, return, item, price, quantity}
  expect(found.chunks[0]).toMatchObject({ startLine: 1, endLine: 2, score: 4 / 10, text: FILES['pricing.py'] });
  expect(found.chunks[0]?.vector).toEqual(Float32Array.of(FILES['pricing.py'].length, 0.25));
  expect(found.chunks[0]?.id).toMatch(/^[0-9a-f]{64}$/);
});

test.each(['pricing.py', './pricing.py', 'src/../pricing.py'])(
  'leaves out the file being edited, as %s',
  async (path) => {
    await publish(FILES, '1');
    const found = await retrieval.retrieve(query('line_total(line, item, quantity)', { path }), NEVER);
    expect(found.chunks.map((chunk) => chunk.path)).toEqual(['cart.py']);
  },
);

test('retrieval gives at most top-k chunks', async () => {
  await publish(FILES, '1');
  expect((await retrieval.retrieve(query('item quantity', { topK: 1 }), NEVER)).chunks).toHaveLength(1);
  expect((await retrieval.retrieve(query('item quantity', { topK: 0 }), NEVER)).chunks).toEqual([]);
});

test('an unknown repository is reported as not found', async () => {
  const missing = { ...query('x'), repo: 'nobody/nothing' };
  await expect(retrieval.retrieve(missing, NEVER)).rejects.toMatchObject({ code: 'repo_not_found' });
  const odd = { ...query('x'), repo: '../etc' };
  await expect(retrieval.retrieve(odd, NEVER)).rejects.toMatchObject({ code: 'invalid_request' });
});

test('the old version is served until the new one is loaded, and then the new one', async () => {
  await publish(FILES, '1');
  await retrieval.retrieve(query('item'), NEVER);
  await publish({ ...FILES, 'z.py': 'item = 1' }, '2');
  expect((await retrieval.retrieve(query('item'), NEVER)).indexVersion).toBe('1'.repeat(16));
  await expect
    .poll(async () => (await retrieval.retrieve(query('item'), NEVER)).indexVersion, { interval: 1 })
    .toBe('2'.repeat(16));
  expect((await retrieval.retrieve(query('item', { topK: 1 }), NEVER)).chunks[0]?.path).toBe('z.py');
});

test('retrieval goes on with the new version if the old one was swept', async () => {
  await publish(FILES, '1');
  await retrieval.retrieve(query('item'), NEVER);
  await publish({ 'new.py': 'item = 1' }, '2');
  const found = await retrieval.retrieve(query('item'), NEVER);
  expect(found.indexVersion).toBe('2'.repeat(16));
  expect(found.chunks.map((chunk) => chunk.path)).toEqual(['new.py']);
});

test('a version that has lost chunks is reported', async () => {
  const evicting: Store = { ...bound(store), contents: async (_repo, _fingerprint, ids) => ids.map(() => undefined) };
  await publish(FILES, '1');
  const lossy = createRetrieval(evicting, { queryLines: 10 });
  await expect(lossy.retrieve(query('item'), NEVER)).rejects.toMatchObject({ code: 'store_invalid' });
  const gone: Store = { ...bound(store), entries: async (_repo, ids) => ids.map(() => undefined) };
  const empty = createRetrieval(gone, { queryLines: 10 });
  await expect(empty.retrieve(query('item'), NEVER)).rejects.toMatchObject({ code: 'store_invalid' });
});

test('an index is loaded once for all requests at the same time', async () => {
  await publish(FILES, '1');
  let snapshots = 0;
  const counting: Store = {
    ...bound(store),
    snapshot: (repo) => {
      snapshots++;
      return store.snapshot(repo);
    },
  };
  const shared = createRetrieval(counting, { queryLines: 10 });
  await Promise.all([1, 2, 3].map(() => shared.retrieve(query('item'), NEVER)));
  await shared.retrieve(query('item'), NEVER);
  expect(snapshots).toBe(1);
});

test('retrieval stops waiting at its signal, and a failure afterwards is not unhandled', async () => {
  await publish(FILES, '1');
  let fail: (error: Error) => void = () => {};
  const stuck: Store = { ...bound(store), head: () => new Promise((_, reject) => (fail = reject)) };
  const waiting = createRetrieval(stuck, { queryLines: 10 });
  const abort = new AbortController();
  const answer = waiting.retrieve(query('item'), abort.signal);
  abort.abort(new Error('too late'));
  await expect(answer).rejects.toThrow('too late');
  fail(new Error('and then it broke'));
  await expect(waiting.retrieve(query('item'), abort.signal)).rejects.toThrow('too late');
});

/** The store's methods as plain functions, to replace some of them. */
function bound(store: Store): Store {
  return {
    address: store.address,
    head: (repo) => store.head(repo),
    snapshot: (repo) => store.snapshot(repo),
    leftOut: (repo) => store.leftOut(repo),
    entries: (repo, ids) => store.entries(repo, ids),
    repositories: (tenant) => store.repositories(tenant),
    contents: (repo, fingerprint, ids) => store.contents(repo, fingerprint, ids),
    lock: (repo, ttlMs) => store.lock(repo, ttlMs),
    close: () => store.close(),
  };
}

/** An encoder that counts a few words. */
const WORDS = ['cart', 'line', 'price', 'note'];
const embed = async (text: string) =>
  Float32Array.from(WORDS, (word, i) => text.toLowerCase().split(word).length - 1 + (i === 3 ? 0.01 : 0));
const dense = {
  threads: 1,
  loadEncoder: async (): Promise<QueryEncoder> => ({ fingerprint: FINGERPRINT, embed, dispose: () => {} }),
};

/** Publishes FILES with embeddings. */
async function publishDense(head: Partial<IndexHead> = {}, fingerprint = withEmbeddings(FINGERPRINT)) {
  const chunks = Object.entries(FILES).flatMap(([path, text]) =>
    chunkFile(path, text, { chunkLines: 10, chunkStride: 5 }),
  );
  const writer = await store.lock(REPO, 30_000);
  const rows = chunks.map(async (chunk) => ({
    chunk,
    vector: fingerprint === NO_VECTORS ? new Float32Array(0) : Float32Array.of(chunk.text.length, 0.25),
    embedding: await embed(chunk.text),
  }));
  await writer.put(fingerprint, await Promise.all(rows));
  await writer.publish({
    head: {
      version: 'd'.repeat(16),
      fingerprint,
      hidden: 2,
      files: 3,
      chunks: chunks.length,
      languages: {},
      indexedAt: new Date(0).toISOString(),
      ...head,
    },
    ids: packIds(chunks.map((chunk) => chunk.id)),
  });
  await writer.release();
}

/** All orders of the values. */
function orders<T>(values: readonly T[]): T[][] {
  if (values.length === 0) return [[]];
  return values.flatMap((value, i) => orders(values.toSpliced(i, 1)).map((rest) => [value, ...rest]));
}

const paths = (found: Retrieved) => found.chunks.map((chunk) => chunk.path);

test('dense retrieval searches by embeddings, and reports the fingerprint of encoder and projector', async () => {
  await publishDense();
  const searching = createRetrieval(store, { queryLines: 10, dense });
  const found = await searching.retrieve({ ...query('the price of a line'), retriever: 'dense' }, NEVER);
  expect(paths(found)).toEqual(['pricing.py', 'cart.py', 'notes.md']);
  expect(found).toMatchObject({ retriever: 'dense', fingerprint: FINGERPRINT });
  const elsewhere = { ...query('the price of a line', { path: 'pricing.py', topK: 1 }), retriever: 'dense' as const };
  expect(paths(await searching.retrieve(elsewhere, NEVER))).toEqual(['cart.py']);
  expect(paths(await searching.retrieve({ ...query(' \n'), retriever: 'dense' }, NEVER))).toEqual([]);
});

test.each(['jaccard', 'bm25', 'dense', 'fused', 'none'] as const)(
  'the index names %s as its retriever, and it searches',
  async (name) => {
    await publishDense({ retriever: name });
    const searching = createRetrieval(store, { queryLines: 10, dense });
    const found = await searching.retrieve(query('line_total(line.price)'), NEVER);
    expect(found.retriever).toBe(name);
    expect(paths(found)[0]).toBe(name === 'none' ? undefined : 'pricing.py');
    const other = name === 'bm25' ? 'jaccard' : 'bm25';
    expect((await searching.retrieve({ ...query('line'), retriever: other }, NEVER)).retriever).toBe(other);
  },
);

test('fused retrieval takes what any of the three finds', async () => {
  await publishDense({ retriever: 'fused' });
  const searching = createRetrieval(store, { queryLines: 10, dense });
  // The notes share no identifier with the query: only the embedding leads there.
  const found = await searching.retrieve(query('NoteTaker'), NEVER);
  expect(paths(found)[0]).toBe('notes.md');
});

test('an index or a gateway without embeddings refuses to compare them', async () => {
  await publish(FILES, '1');
  const asked = { ...query('item'), retriever: 'dense' as const };
  const refused = {
    code: 'invalid_request',
    param: 'retriever',
    message: expect.stringContaining('--retriever dense'),
  };
  await expect(createRetrieval(store, { queryLines: 10, dense }).retrieve(asked, NEVER)).rejects.toMatchObject(refused);
  await publishDense();
  await expect(createRetrieval(store, { queryLines: 10 }).retrieve(asked, NEVER)).rejects.toMatchObject({
    code: 'invalid_request',
    message: expect.stringContaining('no encoder'),
  });
});

test('an index without vectors is searched by identifiers, and refuses to compare embeddings', async () => {
  await publishDense({ hidden: 0 }, NO_VECTORS);
  const searching = createRetrieval(store, { queryLines: 10, dense });
  for (const retriever of ['jaccard', 'bm25'] as const) {
    const found = await searching.retrieve({ ...query('line_total(line)'), retriever }, NEVER);
    expect(found).toMatchObject({ retriever, fingerprint: NO_VECTORS });
    expect(paths(found)[0]).toBe('pricing.py');
  }
  for (const retriever of ['dense', 'fused'] as const) {
    await expect(searching.retrieve({ ...query('line'), retriever }, NEVER)).rejects.toMatchObject({
      code: 'invalid_request',
      param: 'retriever',
    });
  }
});

test('where nothing encodes queries, an index for fused is searched with jaccard unless the request names fused', async () => {
  await publishDense({ retriever: 'fused' });
  const found = await retrieval.retrieve(query('line_total(line)'), NEVER);
  expect(found.retriever).toBe('jaccard');
  expect(paths(found)[0]).toBe('pricing.py');
  await expect(retrieval.retrieve({ ...query('line'), retriever: 'fused' }, NEVER)).rejects.toMatchObject({
    code: 'invalid_request',
    message: expect.stringContaining('no encoder'),
  });
});

test('embeddings of another encoder are not compared', async () => {
  await publishDense({}, withEmbeddings('0'.repeat(64)));
  const searching = createRetrieval(store, { queryLines: 10, dense });
  await expect(searching.retrieve({ ...query('item'), retriever: 'fused' }, NEVER)).rejects.toMatchObject({
    code: 'store_invalid',
    message: expect.stringMatching(/0{64}.*f{64}/),
  });
});

test('copies of the text around the cursor make room for other chunks', async () => {
  const local = 'def pay(cart):\n    total = line_total(cart)\n    return total';
  await publish({ 'a_copy.py': local, 'b_copy.py': `${local}\n`, ...FILES }, '1');
  const found = await retrieval.retrieve(query(local, { topK: 1 }), NEVER);
  expect(paths(found)).toEqual(['pricing.py']);
  const all = await retrieval.retrieve(query(local, { topK: 10 }), NEVER);
  expect(paths(all)).not.toContain('a_copy.py');
  expect(paths(all)).toContain('pricing.py');
});

describe('thousands of copies of the text around the cursor', () => {
  const lines = [
    'def pay(cart):',
    '    total = line_total(cart)',
    '    bill(total)',
    '    log(cart)',
    '    return total',
  ];
  const local = lines.join('\n');
  /**
   * The lines in another order each: the identifiers are the same, their order is not, so the index knows them apart.
   */
  const copies = Object.fromEntries(orders(lines).map((order, i) => [`copy_${i}.py`, order.join('\n')]));

  /** @param onRead told how many rows each round reads. */
  const reading = (onRead: (rows: number) => void) =>
    createRetrieval(
      {
        ...bound(store),
        contents: (repo, fingerprint, ids) => {
          onRead(ids.length);
          return store.contents(repo, fingerprint, ids);
        },
      },
      { queryLines: 10 },
    );

  test('a search through thousands of copies ends at a bound', async () => {
    await publish({ ...copies, ...FILES }, '1');
    const rounds: number[] = [];
    await reading((rows) => rounds.push(rows)).retrieve(query(local, { topK: 2 }), NEVER);
    expect(rounds.reduce((sum, rows) => sum + rows)).toBe(8 * 2);
    expect(rounds.length).toBeLessThan(8);
  });

  test('a search through thousands of copies ends when the caller has given up', async () => {
    await publish({ ...copies, ...FILES }, '1');
    const abort = new AbortController();
    let rounds = 0;
    const giveUp = () => {
      rounds++;
      abort.abort(new Error('too late'));
    };
    await expect(reading(giveUp).retrieve(query(local, { topK: 2 }), abort.signal)).rejects.toThrow('too late');
    for (let turn = 0; turn < 20; turn++) await nextTurn();
    expect(rounds).toBe(1);
  });
});

describe('equal and nearly equal chunks take one place', () => {
  /** Ten lines of code with about 25 identifiers, of which `renamed` are the variant's own. */
  const variant = (name: string, renamed = 0) =>
    Array.from({ length: 10 }, (_, i) => `price_${i} = line_total(${i < renamed ? `${name}_${i}` : `cart_${i}`})`).join(
      '\n',
    );
  const others = Object.fromEntries(
    Array.from({ length: 5 }, (_, i) => [`z/other_${i}.py`, `line_total(price_${i}, alpha_${i}, beta_${i})`]),
  );
  const asked = query('price_1 = line_total(cart_1, price_0, price_2, price_3, price_4)');
  const chunksOf = (files: Record<string, string>) =>
    Object.entries(files).flatMap(([path, text]) => chunkFile(path, text, { chunkLines: 10, chunkStride: 5 }));

  /** Publishes files with embeddings of their identifiers, under every retriever. */
  async function search(files: Record<string, string>, retriever: RetrieverName, path?: string) {
    const dim = 64;
    const embedding = (text: string) => {
      const vector = new Float32Array(dim).fill(0.01);
      for (const token of identifiers(text))
        vector[Number.parseInt(createHash('md5').update(token).digest('hex').slice(0, 2), 16) % dim]!++;
      return vector;
    };
    const chunks = chunksOf(files);
    const writer = await store.lock(REPO, 30_000);
    const fingerprint = withEmbeddings(FINGERPRINT);
    const rows = chunks.map((chunk) => ({ chunk, vector: Float32Array.of(1), embedding: embedding(chunk.text) }));
    await writer.put(fingerprint, rows);
    const head = { version: 'e'.repeat(16), fingerprint, hidden: 1, files: 1, chunks: chunks.length, languages: {} };
    const snapshot = {
      head: { ...head, indexedAt: new Date(0).toISOString() },
      ids: packIds(chunks.map((chunk) => chunk.id)),
    };
    await writer.publish(snapshot);
    await writer.release();
    const loadEncoder = async (): Promise<QueryEncoder> => ({
      fingerprint: FINGERPRINT,
      embed: async (text) => embedding(text),
      dispose: () => {},
    });
    const searching = createRetrieval(store, { queryLines: 10, dense: { threads: 1, loadEncoder } });
    const answers = [1, 2].map(() => searching.retrieve({ ...asked, path, retriever }, NEVER));
    const [first, second] = (await Promise.all(answers)).map(paths);
    expect(second).toEqual(first);
    return first!;
  }

  describe.each(['jaccard', 'bm25', 'dense', 'fused'] as const)('with %s', (retriever) => {
    test(`a hundred copies of one text leave room for the other chunks (${retriever})`, async () => {
      const copies = Array.from({ length: 100 }, (_, i) => [`vendor/${100 + i}/util.py`, variant('same')]);
      const found = await search({ ...Object.fromEntries(copies), ...others }, retriever);
      expect(found.filter((path) => path.startsWith('vendor'))).toEqual(['vendor/100/util.py']);
      expect(found.filter((path) => path.startsWith('z/'))).toHaveLength(5);
    });

    test(`generated variants that differ in a name or two take one place (${retriever})`, async () => {
      const variants = Array.from({ length: 20 }, (_, i) => [`generated/${10 + i}.py`, variant(`own${i}`, 1)]);
      const found = await search({ ...Object.fromEntries(variants), ...others }, retriever);
      expect(found.filter((path) => path.startsWith('generated'))).toHaveLength(1);
      expect(found.filter((path) => path.startsWith('z/'))).toHaveLength(5);
    });

    test(`copies of the file being edited take one place, and not the first of them if that is edited (${retriever})`, async () => {
      const copies = Object.fromEntries(['a.py', 'b/a.py', 'c/a.py'].map((path) => [path, variant('same')]));
      const found = await search({ ...copies, ...others }, retriever, 'a.py');
      expect(found.filter((path) => path.endsWith('a.py'))).toEqual(['b/a.py']);
      expect(found).toHaveLength(6);
    });

    test(`chunks that differ in half of their names keep a place each (${retriever})`, async () => {
      const variants = Object.fromEntries(['a', 'b', 'c'].map((name) => [`${name}.py`, variant(name, 6)]));
      const found = await search({ ...variants, ...others }, retriever);
      expect(found.filter((path) => !path.startsWith('z/')).sort()).toEqual(['a.py', 'b.py', 'c.py']);
    });
  });

  test('windows of one file keep their places if half of their lines differ, and share one if hardly any does', async () => {
    const line = (i: number) => `price_${i} = line_total(cart_${i}, item_${i})`;
    await publish({ 'a.py': Array.from({ length: 20 }, (_, i) => line(i)).join('\n') }, '1');
    expect((await retrieval.retrieve(asked, NEVER)).chunks).toHaveLength(3);
    await publish({ 'a.py': Array.from({ length: 20 }, (_, i) => line(i % 6)).join('\n') }, '2');
    await retrieval.warm(REPO);
    expect((await retrieval.retrieve(asked, NEVER)).chunks).toHaveLength(1);
  });
});

describe('indexes in memory', () => {
  /** Three repositories of the same content, and a retrieval that keeps `limit` of their indexes. */
  async function three(indexCacheBytes: number) {
    await publish(FILES, '1');
    const loads: string[] = [];
    const shared: Store = {
      ...bound(store),
      head: () => store.head(REPO),
      snapshot: (repo) => {
        loads.push(repo);
        return store.snapshot(REPO);
      },
      entries: (_, ids) => store.entries(REPO, ids),
      contents: (_, fingerprint, ids) => store.contents(REPO, fingerprint, ids),
    };
    const searching = createRetrieval(shared, { queryLines: 10, indexCacheBytes });
    const ask = (repo: string) => searching.retrieve({ ...query('item'), repo }, NEVER);
    return { searching, loads, ask };
  }

  test('indexes are evicted by their bytes, the least recently used first, and the last one stays', async () => {
    const { loads, ask } = await three(3_500); // of about 1,400 each
    for (const repo of ['a', 'b', 'a', 'c', 'a', 'b']) await ask(repo);
    expect(loads).toEqual(['a', 'b', 'c', 'b']);
    const tight = await three(1_500);
    for (const repo of ['a', 'a', 'b', 'b', 'a']) await tight.ask(repo);
    expect(tight.loads).toEqual(['a', 'b', 'a']);
  });

  test('an index larger than the limit is not loaded, and not tried again until there is another version', async () => {
    const { searching, loads, ask } = await three(250);
    await expect(ask('a')).rejects.toThrow(/the index of a takes more than 250 bytes .*--index-cache-bytes/);
    await expect(ask('a')).rejects.toMatchObject({ code: 'index_too_large' });
    await searching.warm('a');
    expect(loads).toEqual(['a']);
    await publish({ 'new.py': 'x = 1' }, '2');
    expect((await ask('a')).indexVersion).toBe('2'.repeat(16));
  });

  test('indexes are loaded ahead as long as half of the memory is free', async () => {
    const { searching, loads, ask } = await three(3_500);
    for (const repo of ['a', 'b', 'c', 'b', 'c']) await searching.warm(repo);
    expect(loads).toEqual(['a', 'b']);
    await ask('a');
    expect(loads).toEqual(['a', 'b']);
  });

  test('the embeddings of an index count once they are loaded', async () => {
    await publishDense();
    const loads: string[] = [];
    const shared: Store = {
      ...bound(store),
      head: () => store.head(REPO),
      snapshot: (repo) => {
        loads.push(repo);
        return store.snapshot(REPO);
      },
      entries: (_, ids) => store.entries(REPO, ids),
      contents: (_, fingerprint, ids) => store.contents(REPO, fingerprint, ids),
    };
    const sizeOf = async (retriever: 'jaccard' | 'dense') => {
      // Search for the least memory that keeps two of them.
      for (let indexCacheBytes = 2_000; ; indexCacheBytes += 20) {
        const searching = createRetrieval(shared, { queryLines: 10, dense, indexCacheBytes });
        loads.length = 0;
        for (const repo of ['a', 'b', 'a']) await searching.retrieve({ ...query('item'), repo, retriever }, NEVER);
        if (loads.length === 2) return indexCacheBytes / 2;
      }
    };
    const embeddings = (await sizeOf('dense')) - (await sizeOf('jaccard'));
    // Three chunks of four values: a float and a level of each value, and two numbers of each chunk.
    const expected = 3 * (4 * 5 + 8);
    expect(Math.abs(embeddings - expected)).toBeLessThanOrEqual(10);
  });

  test('an index is replaced by a newer version before that is asked for', async () => {
    await publish(FILES, '1');
    await retrieval.warm(REPO);
    await publish({ 'new.py': 'item = 1' }, '2');
    await retrieval.warm(REPO);
    expect((await retrieval.retrieve(query('item'), NEVER)).indexVersion).toBe('2'.repeat(16));
  });
});
