/** What a projector is pretrained on: the distinct chunks of a data set, and samples that ask for their text. */
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { loadTokenizer } from '../../../services/lib/text/tokenizer.ts';
import type { Embeddings } from '../../../training/data/embeddings.ts';
import { readDataSet } from '../../../training/data/rows.ts';
import { SampleMaker } from '../../../training/data/samples.ts';
import { DistinctChunks, recovering } from '../../../training/pretrain/chunks.ts';
import { CUES, cueAt } from '../../../training/pretrain/cues.ts';
import { PRETRAIN_PROMPT } from '../../../training/pretrain/settings.ts';
import { TINY_CODER, temporaryFolder } from '../../support/models.ts';
import { row, writeRows } from '../../support/training.ts';

const dir = await temporaryFolder();
const tokenizer = await loadTokenizer(TINY_CODER);
const makerOf = (changes = {}) =>
  new SampleMaker(tokenizer, [], { chunks: 2, promptTokens: 64, targetTokens: 24, textTokens: 0, ...changes });
const read = async (name: string, rows: readonly unknown[]) =>
  (await readDataSet(await writeRows(join(dir, name), rows), 'train')).rows;

test('each chunk that becomes a soft token counts once, and the first ones are taken where there is a limit', async () => {
  const rows = await read('some.jsonl', [
    row(1),
    row(2),
    { ...row(3), crossfile_array: ['# c.py\n \n', ...row(1).crossfile_array] },
  ]);
  const all = new DistinctChunks(rows, makerOf({ chunks: 3 }));
  expect(all.count).toBe(3); // cart.py is in all rows, the chunk without text in none
  expect(all.at(2)).toMatchObject({ name: expect.stringMatching(/some\.jsonl:2, chunk 1$/) });
  expect(all.at(2).chunk.text).toContain('class Item2');
  expect(new DistinctChunks(rows, makerOf(), 2).count).toBe(2);
  expect(new DistinctChunks(rows, makerOf({ chunks: 1 })).count).toBe(2);
});

test('a data set whose chunks have no text is refused', async () => {
  const rows = await read('blank.jsonl', [{ ...row(1), crossfile_array: ['# c.py\n', ''] }]);
  expect(() => new DistinctChunks(rows, makerOf())).toThrow(
    expect.objectContaining({
      code: 'sample_invalid',
      message: expect.stringMatching(/blank\.jsonl:1 .*without text/),
    }),
  );
});

test('a sample has the soft token and a cue in its prompt, and the text of the chunk as its target', async () => {
  const rows = await read('one.jsonl', [row(1)]);
  const chunk = new DistinctChunks(rows, makerOf()).at(0);
  const asked: unknown[] = [];
  const embeddings = {
    of: async (chunks: unknown) => {
      asked.push(chunks);
      return Float32Array.of(1, 2);
    },
  };
  const sample = (maker: SampleMaker, cue: string) =>
    recovering(chunk, cue, maker, embeddings as unknown as Embeddings);
  const { promptIds, softPositions, targetIds } = await sample(makerOf({ chunks: 1, targetTokens: 100 }), CUES[0]!);
  expect(asked).toEqual([[chunk.chunk]]);
  expect(softPositions).toHaveLength(1);
  expect(tokenizer.decode([...promptIds])).toContain(CUES[0]!.trim());
  expect(targetIds.at(-1)).toBe(tokenizer.eosId);
  expect(tokenizer.decode(targetIds.slice(0, -1))).toBe(chunk.chunk.text);
  expect((await sample(makerOf({ chunks: 1, targetTokens: 5 }), '')).targetIds).toHaveLength(5);
  for (const cue of CUES) {
    const whole = await sample(makerOf({ chunks: 1, promptTokens: 1000 }), cue);
    expect(whole.promptIds.length, cue).toBeLessThanOrEqual(PRETRAIN_PROMPT);
  }
});

test('a sample has all soft tokens of a chunk in its prompt, and no cue is cut for them', async () => {
  const rows = await read('several.jsonl', [row(1)]);
  const chunk = new DistinctChunks(rows, makerOf()).at(0);
  const embeddings = { of: async () => new Float32Array(8) } as unknown as Embeddings;
  for (const cue of CUES) {
    const maker = makerOf({ chunks: 1, softPerChunk: 8, promptTokens: PRETRAIN_PROMPT + 7 });
    const { promptIds, softPositions } = await recovering(chunk, cue, maker, embeddings);
    expect(softPositions).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    const alone = await recovering(chunk, cue, makerOf({ chunks: 1 }), embeddings);
    expect(promptIds.slice(8)).toEqual(alone.promptIds.slice(1));
  }
});

test('cues are drawn by seed and place, and all of them are', () => {
  const drawn = (seed: number) => Array.from({ length: 400 }, (_, place) => cueAt(seed, place));
  expect(drawn(1)).toEqual(drawn(1));
  expect(drawn(1)).not.toEqual(drawn(2));
  expect(new Set(drawn(1))).toEqual(new Set(CUES));
});
