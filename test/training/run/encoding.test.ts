/** Chunks are encoded in parts that grow, and that depend on settings alone. */
import { expect, test } from 'vitest';
import type { Chunk, DataRow } from '../../../training/data/rows.ts';
import { EncodingAhead } from '../../../training/run/encoding.ts';
import { batchOf } from '../../../training/run/order.ts';
import { never } from '../../support/training.ts';

const rowAt = (i: number): DataRow => {
  const name = `train.jsonl:${i}`;
  return { name, left: '', right: '', target: 'x', chunks: [{ path: name, text: '' }] };
};
const rows = Array.from({ length: 400 }, (_, i) => rowAt(i));
const held = Array.from({ length: 3 }, (_, i) => rowAt(1000 + i));

/** What is encoded of 60 steps of 10 samples, part by part. */
function encoder() {
  const parts: string[][] = [];
  let closed = 0;
  const embeddings = {
    add: async (chunks: Iterable<Chunk>) => {
      parts.push([...chunks].map(({ path }) => path));
    },
    closeEncoder: () => {
      closed++;
    },
  };
  const samples = { chunksOf: (row: DataRow) => [...row.chunks] };
  const rowsOf = (step: number) => batchOf(step, 10, rows.length, 1).map((i) => rows[i]!);
  const settings = { embeddings, samples, first: held, rowsOf, steps: 60, total: rows.length };
  const ahead = new EncodingAhead(settings, () => {});
  return { parts, sizes: () => parts.map(({ length }) => length), isClosed: () => closed > 0, ahead };
}

test('the validation is encoded first, then 64 samples, then twice as many, as steps come to need them', async () => {
  const { ahead, parts, sizes, isClosed } = encoder();
  await ahead.until(-1, never);
  expect(parts).toEqual([held.map(({ name }) => name)]);
  for (const [step, expected] of [
    [0, [3, 70]], // whole batches of 10
    [6, [3, 70]],
    [7, [3, 70, 130]],
    [19, [3, 70, 130]],
  ] as const) {
    await ahead.until(step, never);
    expect(sizes(), `step ${step}`).toEqual(expected);
    expect(isClosed()).toBe(false);
  }
  await ahead.until(20, never);
  expect(sizes()).toEqual([3, 70, 130, 200]);
  expect(isClosed()).toBe(true);
  await ahead.until(59, never);
  expect(sizes()).toEqual([3, 70, 130, 200]);
  expect(new Set(parts.flat()).size).toBe(403);
});

test('a run that goes on from a later step has the same parts', async () => {
  const [whole, resumed] = [encoder(), encoder()];
  for (let step = -1; step < 25; step++) await whole.ahead.until(step, never);
  await resumed.ahead.until(24, never);
  expect(resumed.parts).toEqual(whole.parts);
});
