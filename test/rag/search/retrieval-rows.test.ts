/** Retrieval reads no more rows, parts of rows and bytes than it needs, and goes on without rows that are damaged. */
import { describe, expect, test } from 'vitest';
import { createRetrieval, type RetrievalQuery } from '../../../services/lib/rag/search/retrieval.ts';
import { fileIdOf, packIds } from '../../../services/lib/rag/store/row.ts';
import type { ChunkRow, LeftOutRow } from '../../../services/lib/rag/store/store.ts';
import { MemoryStore } from '../../support/memory-store.ts';

const LOCAL = 'def pay(cart):\n    total = line_total(cart)';
const FILES = {
  'copy.py': LOCAL,
  'pricing.py': 'def line_total(line):\n    return line.price * line.quantity',
  'cart.py': 'class Cart:\n    def total(self):\n        return self.lines',
};

function scene() {
  const store = new MemoryStore();
  const rows = store.publishFiles('shop', FILES);
  const leftOut: LeftOutRow[] = [];
  const retrieval = createRetrieval(store, { queryLines: 10, onLeftOut: (_, row) => leftOut.push(row) });
  const retrieve = async (part: RetrievalQuery['part'], topK = 10, before = LOCAL) => {
    store.asked.length = 0;
    return retrieval.retrieve({ repo: 'shop', before, after: '', topK, part }, new AbortController().signal);
  };
  const damage = (path: string, bytes: (row: Buffer) => Buffer) => {
    const key = `shop ${rows.find(({ chunk }) => chunk.path === path)!.chunk.id}`;
    store.contentBytes.set(key, bytes(store.contentBytes.get(key)!));
  };
  return { store, rows, leftOut, retrieve, damage };
}
const paths = ({ chunks }: { chunks: readonly { path: string }[] }) => chunks.map(({ path }) => path);

describe('the parts of rows', () => {
  test('compressed context reads vectors, and the texts of those chunks alone that may be copies of the text at the cursor', async () => {
    const { store, rows, retrieve } = scene();
    await retrieve('vectors');
    const found = await retrieve('vectors');
    expect(paths(found)).toEqual(['pricing.py', 'cart.py']);
    expect(found.chunks[0]!.vector).toEqual(Float32Array.of(1, 0.5));
    expect(store.parts).toEqual(['entries', 'contents vectors', 'contents text']);
    expect(store.asked.at(-1)!.ids).toEqual([rows[0]!.chunk.id]);
    await retrieve('vectors', 10, 'line_total(line)');
    expect(store.parts).toEqual(['entries', 'contents vectors']);
  });

  test('context as text reads no vectors', async () => {
    const { store, retrieve } = scene();
    await retrieve('text');
    const found = await retrieve('text');
    expect(paths(found)).toEqual(['pricing.py', 'cart.py']);
    expect(found.chunks[0]).toMatchObject({ text: FILES['pricing.py'], vector: new Float32Array(0) });
    expect(store.parts).toEqual(['entries', 'contents text']);
  });
});

describe('several soft tokens per chunk, and vectors of files', () => {
  /** The files with a row each, whose vector is [10 + its number, 1]. */
  function withFiles() {
    const made = scene();
    const { store, rows } = made;
    const fileRows = Object.keys(FILES).map((path, i): ChunkRow => {
      const id = fileIdOf(path, packIds(rows.filter(({ chunk }) => chunk.path === path).map(({ chunk }) => chunk.id)));
      return {
        chunk: { id, path, startLine: 1, endLine: 3, text: '', tokens: [] },
        vector: Float32Array.of(10 + i, 1),
      };
    });
    store.publish('shop', [...rows, ...fileRows], { chunks: rows.length, fileRows: fileRows.length });
    return { ...made, fileRows };
  }
  const ask = ({ store }: ReturnType<typeof scene>, query: Partial<RetrievalQuery> = {}) => {
    const whole = { repo: 'shop', before: LOCAL, after: '', topK: 10, part: 'vectors', ...query } as const;
    return createRetrieval(store, { queryLines: 10 }).retrieve(whole, new AbortController().signal);
  };

  test('the files of the chunks that are found come with them, that of the best chunk first', async () => {
    const made = withFiles();
    const found = await ask(made, { files: 5 });
    expect(paths(found)).toEqual(['pricing.py', 'cart.py']);
    expect(found.files).toEqual([
      { path: 'pricing.py', vector: Float32Array.of(11, 1) },
      { path: 'cart.py', vector: Float32Array.of(12, 1) },
    ]);
    expect((await ask(made, { files: 1 })).files).toHaveLength(1);
    expect(await ask(made)).not.toHaveProperty('files');
    expect(await ask(scene(), { files: 5 })).not.toHaveProperty('files');
  });

  test('a row of a file is never found as a chunk, by any retriever', async () => {
    const made = withFiles();
    for (const retriever of ['jaccard', 'bm25'] as const) {
      const found = await ask(made, { retriever, before: 'pricing cart Cart price', topK: 50 });
      expect(found.chunks.map(({ id }) => id)).not.toEqual(
        expect.arrayContaining(made.fileRows.map(({ chunk }) => chunk.id)),
      );
      expect(found.chunks.length).toBeLessThanOrEqual(3);
    }
  });

  test('a file whose row is damaged or gone costs its soft token alone', async () => {
    const { store, fileRows, ...rest } = withFiles();
    const key = `shop ${fileRows[1]!.chunk.id}`;
    store.contentBytes.set(key, store.contentBytes.get(key)!.subarray(0, 3));
    const found = await ask({ store, ...rest }, { files: 5 });
    expect(found.files?.map(({ path }) => path)).toEqual(['cart.py']);
    expect(found.leftOut).toBe('damaged');
    store.contentBytes.delete(key);
    const later = await ask({ store, ...rest }, { files: 5 });
    expect(later.files?.map(({ path }) => path)).toEqual(['cart.py']);
    expect(later.leftOut).toBeUndefined();
    expect(paths(later)).toEqual(['pricing.py', 'cart.py']);
  });

  test('a row has as many vectors as the head says, and one with fewer is damaged', async () => {
    const made = scene();
    const { store, rows } = made;
    const twice = rows.map(({ chunk, vector }) => ({ chunk, vector: Float32Array.of(...vector, ...vector) }));
    store.publish('shop', [twice[0]!, twice[1]!, rows[2]!], { softPerChunk: 2 });
    const found = await ask(made);
    expect(found.chunks.map(({ path, vector }) => [path, [...vector]])).toEqual([['pricing.py', [1, 0.5, 1, 0.5]]]);
    expect(found.leftOut).toBe('damaged');
  });

  test('eight vectors of the widest models are not too large to be read', async () => {
    const made = scene();
    const wide = made.rows.map(({ chunk }) => ({ chunk, vector: new Float32Array(8 * 5_120).fill(1) }));
    made.store.publish('shop', wide, { hidden: 5_120, softPerChunk: 8 });
    const found = await ask(made);
    expect(paths(found)).toEqual(['pricing.py', 'cart.py']);
    expect(found.leftOut).toBeUndefined();
  });
});

describe('a row that is damaged', () => {
  const nan = (row: Buffer) => {
    row.writeUInt16LE(0x7e00, 8);
    return row;
  };
  test.each<[string, (row: Buffer) => Buffer]>([
    ['one value that is not finite', nan],
    ['a vector of another width', (row) => Buffer.concat([Buffer.from([2, 0, 0, 0]), row.subarray(4)])],
    ['a size beyond its end', (row) => Buffer.concat([Buffer.from([0, 0, 0, 64]), row.subarray(4)])],
    ['no bytes to speak of', (row) => row.subarray(0, 3)],
  ])('a row with %s is left out of compressed context, and the others stay', async (_, bytes) => {
    const { rows, leftOut, retrieve, damage } = scene();
    damage('pricing.py', bytes);
    const found = await retrieve('vectors');
    expect(paths(found)).toEqual(['cart.py']);
    expect(found.leftOut).toBe('damaged');
    expect(leftOut).toMatchObject([{ id: rows[1]!.chunk.id, reason: 'damaged' }]);
    expect(leftOut[0]!.why).toContain(rows[1]!.chunk.id);
  });

  test('a vector that is damaged does no harm to context as text', async () => {
    const { retrieve, damage } = scene();
    damage('pricing.py', nan);
    const found = await retrieve('text');
    expect(paths(found)).toEqual(['pricing.py', 'cart.py']);
    expect(found.leftOut).toBeUndefined();
  });

  test('a text that is not UTF-8 is left out of context as text, and does no harm to vectors', async () => {
    const { retrieve, damage } = scene();
    damage('pricing.py', (row) => Buffer.concat([row, Buffer.from([0xc3])]));
    expect(await retrieve('text')).toMatchObject({ leftOut: 'damaged', chunks: [{ path: 'cart.py' }] });
    expect(paths(await retrieve('vectors'))).toEqual(['pricing.py', 'cart.py']);
  });
});

describe('rows that are large', () => {
  const big = (count: number, length: number) =>
    Object.fromEntries(
      Array.from({ length: count }, (_, i) => [`f${i}.py`, `shared = own_${i}("${'x'.repeat(length)}")`]),
    );

  test('a row larger than the limit is left out, and told', async () => {
    const { store, retrieve, damage } = scene();
    damage('pricing.py', (row) => Buffer.concat([row, Buffer.alloc(70_000, 'x')]));
    expect(await retrieve('text')).toMatchObject({ leftOut: 'too_large', chunks: [{ path: 'cart.py' }] });
    // The vector before a text that is too large is not.
    expect(paths(await retrieve('vectors'))).toEqual(['pricing.py', 'cart.py']);
    expect(store.parts).toEqual(['entries', 'contents vectors', 'contents text']);
  });

  test('a retrieval reads a mebibyte at most, gives what it has read, and reads nothing more', async () => {
    const { store, retrieve } = scene();
    store.publishFiles('shop', big(100, 4_000));
    for (const [key, row] of store.contentBytes) {
      store.contentBytes.set(key, Buffer.concat([row, Buffer.alloc(50_000, 'x')]));
    }
    await retrieve('text', 100, 'shared = 1');
    const found = await retrieve('text', 100, 'shared = 1');
    expect(found.leftOut).toBe('too_large');
    expect(found.chunks.length).toBe(19); // of 54,000 bytes each
    expect(store.parts).toEqual(['entries', 'contents text']);
  });
});
