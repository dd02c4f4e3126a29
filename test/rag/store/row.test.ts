import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Chunk } from '../../../services/lib/rag/chunk.ts';
import {
  decodeContent,
  decodeEntry,
  decodeRows,
  encodeContent,
  encodeEntry,
  partOf,
  RowBudget,
} from '../../../services/lib/rag/store/row.ts';
import type { LeftOutRow, RowPart } from '../../../services/lib/rag/store/store.ts';

const ID = 'a'.repeat(64);
const chunk: Chunk = { id: ID, path: 'src/a.py', startLine: 3, endLine: 9, text: 'größe = 1', tokens: ['größe', '1'] };
const row = { chunk, vector: Float32Array.of(1, -2), embedding: Float32Array.of(0.5, 0.25, 4) };
const half = (content: Buffer, index: number, bits: number) => {
  const copy = Buffer.from(content);
  copy.writeUInt16LE(bits, 8 + 2 * index);
  return copy;
};

describe('entries', () => {
  const entry =
    (...fields: unknown[]) =>
    () =>
      decodeEntry(ID, Buffer.from(JSON.stringify(fields)));

  test('an entry comes back as it was stored', () => {
    const { text: _, ...stored } = chunk;
    expect(decodeEntry(ID, encodeEntry(chunk))).toEqual(stored);
  });

  test.each([
    ['a path that leaves the repository', ['../a.py', 1, 2, 'x'], /does not name a file/],
    ['an empty path', ['', 1, 2, 'x'], /does not name a file/],
    ['a path with a line break', ['a\n.py', 1, 2, 'x'], /does not name a file/],
    ['a path that is not a text', [1, 1, 2, 'x'], /does not name a file/],
    ['a line that is not whole', ['a.py', 1.5, 2.5, 'x'], /lines are not a range/],
    ['a line below 1', ['a.py', 0, 2, 'x'], /lines are not a range/],
    ['lines in the wrong order', ['a.py', 3, 2, 'x'], /lines are not a range/],
    ['lines that are texts', ['a.py', '1', '2', 'x'], /lines are not a range/],
    ['no identifiers', ['a.py', 1, 2], /does not list identifiers/],
  ])('an entry with %s is damaged', (_, fields, why) => {
    expect(entry(...fields)).toThrow(why);
  });

  test('a path in an old form is brought into the normal one', () => {
    expect(entry('src\\a.py', 1, 2, 'x')()).toMatchObject({ path: 'src/a.py' });
  });

  test('an entry that is not UTF-8 is damaged', () => {
    expect(() => decodeEntry(ID, Buffer.from([0x5b, 0x22, 0xff, 0x22, 0x5d]))).toThrow(/not JSON in UTF-8/);
  });
});

describe('contents', () => {
  const content = encodeContent(row);
  const { vector, embedding } = row;

  test('the bytes of a row with one soft token are those that earlier releases read and write', () => {
    const [sizes, vector, embedding, text] = ['0400000006000000', '003c00c0', '003800340044', '6772c3b6c39f65203d2031'];
    expect(encodeContent(row).toString('hex')).toBe(`${sizes}${vector}${embedding}${text}`);
    expect(encodeEntry(chunk).toString()).toBe('["src/a.py",3,9,"größe 1"]');
  });

  test('a content, or a part of it, comes back as it was stored', () => {
    const read = (part?: RowPart) => decodeContent(ID, partOf(content, part), part);
    expect(read()).toEqual({ vector, embedding, text: chunk.text });
    expect(read('vectors')).toEqual({ vector, embedding, text: '' });
    expect(read('text')).toEqual({ vector: new Float32Array(0), embedding: undefined, text: chunk.text });
    expect(partOf(content, 'vectors').length).toBe(8 + 2 * 5);
    expect(partOf(content, 'text').length).toBe(8 + Buffer.byteLength(chunk.text));
  });

  test.each([
    ['NaN in the vector', half(content, 1, 0x7e00), /not finite/],
    ['infinity in the vector', half(content, 0, 0xfc00), /not finite/],
    ['NaN in the embedding', half(content, 4, 0x7e01), /not finite/],
    ['an odd size', Buffer.from([1, 0, 0, 0, ...content.subarray(4)]), /sizes/],
    ['a size beyond the end', Buffer.from([0, 0, 0, 64, ...content.subarray(4)]), /sizes|too short/],
    ['nothing', Buffer.alloc(0), /too short/],
    ['text that is not UTF-8', Buffer.concat([content, Buffer.from([0xc3])]), /not UTF-8/],
  ])('a content with %s is damaged', (_, bytes, why) => {
    expect(() => decodeContent(ID, bytes)).toThrow(why);
  });

  test('damage in the part that is not read does no harm', () => {
    expect(decodeContent(ID, partOf(half(content, 0, 0x7e00), 'text'), 'text').text).toBe(chunk.text);
    const badText = Buffer.concat([content, Buffer.from([0xc3])]);
    expect(decodeContent(ID, partOf(badText, 'vectors'), 'vectors')).toMatchObject({ vector });
    const cut = Buffer.from([0, 0, 0, 64, ...content.subarray(4)]);
    for (const part of ['text', 'vectors'] as const) expect(() => decodeContent(ID, partOf(cut, part), part)).toThrow();
  });

  test('whatever the bytes are, what is decoded is finite, and everything else is called damaged', () => {
    const part = fc.constantFrom(undefined, 'text' as const, 'vectors' as const);
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), fc.nat(40), part, (noise, at, wanted) => {
        const bytes = Buffer.from(content);
        bytes.set(noise.subarray(0, Math.max(0, bytes.length - at)), Math.min(at, bytes.length));
        try {
          const decoded = decodeContent(ID, partOf(bytes, wanted), wanted);
          expect(decoded.vector.every(Number.isFinite)).toBe(true);
          expect(decoded.embedding?.every(Number.isFinite)).not.toBe(false);
        } catch (error) {
          expect(error).toMatchObject({ code: 'store_invalid' });
        }
      }),
      { numRuns: 2_000 },
    );
  });
});

describe('reads that are bounded', () => {
  const ids = ['1', '2', '3', '4'];
  const bytes = [10, 200, 20, 20].map((length) => Buffer.alloc(length));
  const read = (limits: { rowBytes?: number; bytes?: number }) => {
    const budget = new RowBudget(limits);
    const left: LeftOutRow[] = [];
    let count = 0;
    const given = decodeRows(
      ids,
      bytes.map((row) => budget.take(row)),
      { ...limits, onLeftOut: (row) => left.push(row), onBytes: (total) => (count = total) },
      (id) => id,
    );
    return { given, left: left.map(({ id, reason }) => `${id} ${reason}`), count };
  };

  test('rows that are too large are left out, and rows for which no bytes are left come later', () => {
    expect(read({})).toEqual({ given: ids, left: [], count: 250 });
    expect(read({ rowBytes: 100 })).toEqual({ given: ['1', undefined, '3', '4'], left: ['2 too_large'], count: 50 });
    expect(read({ rowBytes: 100, bytes: 35 })).toEqual({
      given: ['1', undefined, '3', undefined],
      left: ['2 too_large', '4 later'],
      count: 30,
    });
    expect(read({ bytes: 100 }).given).toEqual(['1', undefined, undefined, undefined]);
  });

  test('a row that cannot be given fails the read of those who do not want to be told', () => {
    const budget = new RowBudget({ rowBytes: 100 });
    const rows = bytes.map((row) => budget.take(row));
    expect(() => decodeRows(ids, rows, { rowBytes: 100 }, (id) => id)).toThrow(/chunk 2 has 200 bytes, more than 100/);
  });
});
