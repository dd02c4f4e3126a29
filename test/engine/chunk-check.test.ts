/** The check of the longest chunk, by fakes: memory that a long run does not get must show. */
import { expect, test } from 'vitest';
import { assertComputesLongChunks, type ChunkDecoder } from '../../services/lib/engine/chunk-check.ts';
import { limitsOf } from '../../services/lib/engine/self-check.ts';
import type { PromptChunk } from '../../services/lib/engine/session.ts';
import { CpuKvStore } from '../../services/lib/kv/cpu-store.ts';

const VOCAB = 17;
const LAYOUT = { layers: 2, kvHeads: 2, headDim: 4 };
const CAPACITY = 50;

/**
 * A decoder whose KV at a position is its token, and whose logits depend on token and position.
 * @param change what the device makes of a logit, by tokens of the run.
 */
function decoder(change: (logit: number, tokens: number) => number = (logit) => logit) {
  const store = new CpuKvStore(LAYOUT, 1, CAPACITY);
  const runs: { past: number; tokens: number; rows: readonly number[] }[] = [];
  const chunk = async ({ slot, past, ids, logitRows }: PromptChunk) => {
    runs.push({ past, tokens: ids.length, rows: logitRows });
    store.write(slot, { start: past, end: past + ids.length, rowStart: 0, rowEnd: 8 }, (_, to) => {
      new Float32Array(to.buffer, to.byteOffset, to.length / 4).set([...ids].flatMap((id) => [id, id, id, id]));
    });
    return Float32Array.from(
      logitRows.flatMap((row) =>
        Array.from({ length: VOCAB }, (_, i) =>
          change(Math.sin(ids[row]! * 13 + (past + row) * 3 + i * 7) * 4, ids.length),
        ),
      ),
    );
  };
  const fake: ChunkDecoder = { chunk, vocabSize: VOCAB, pool: { store, capacity: CAPACITY, layout: LAYOUT } };
  return { fake, store, runs };
}

const check = (fake: ChunkDecoder, tokens = 20) =>
  assertComputesLongChunks(fake, tokens, limitsOf('fp16', 1), 'the test GPU');

test('the chunk is computed at the end of a slot that is full of KV, at once and in halves, and the same rows compared', async () => {
  const { fake, store, runs } = decoder();
  await check(fake);
  const rows = [0, 2, 5, 8, 10, 13, 16, 19];
  expect(runs).toEqual([
    { past: 0, tokens: 20, rows },
    { past: 30, tokens: 20, rows },
    { past: 30, tokens: 10, rows: rows.slice(0, 4) },
    { past: 40, tokens: 10, rows: rows.slice(4).map((row) => row - 10) },
  ]);
  const [row] = store.read(0, { start: 0, end: CAPACITY, rowStart: 5, rowEnd: 6 });
  const kv = Array.from(new Float32Array(Uint8Array.from(row!).buffer)).filter((_, i) => i % 4 === 0);
  expect(kv.slice(0, 20).some((token) => token > 0)).toBe(true);
  expect(kv.slice(20, 30)).toEqual(kv.slice(0, 10)); // then the chunk itself
  expect(kv.slice(30)).toEqual(kv.slice(0, 20));
});

test.each([
  ['are off in the long run', (logit: number, tokens: number) => (tokens > 10 ? logit + (logit % 1) : logit)],
  ['are not finite', () => Number.NaN],
  ['are all the same, whatever the length of the run', () => 0],
])('a device on which the logits %s is refused with the remedy', async (_, change) => {
  await expect(check(decoder(change).fake)).rejects.toMatchObject({
    code: 'out_of_memory',
    message: expect.stringMatching(
      /the test GPU computes a chunk of 20 tokens at the end of a slot of 50 wrong: .*lower --prefill-chunk-tokens/,
    ),
  });
});

test('a device that rounds a little passes', async () => {
  await check(decoder((logit, tokens) => logit * (1 + tokens * 1e-5)).fake);
});

test('a chunk as long as the slot, and one of one token, are right where the device is', async () => {
  const { fake, runs } = decoder();
  await check(fake, CAPACITY);
  expect(runs.map(({ past }) => past)).toEqual([0, 0, 25]);
  await check(fake, 1);
  await check(fake, 2);
});
