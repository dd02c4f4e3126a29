/** BERT's tokenizer gives the ids of Hugging Face's tokenizers package (goldens), and refuses others by name. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, onTestFinished, test } from 'vitest';
import { loadEncoderTokenizer } from '../../services/lib/text/encoder-tokenizer.ts';
import { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import { GOLDENS, readJsonFile, TINY_CODER } from '../support/models.ts';

const DIR = join(GOLDENS, 'bert');
const tokenizer = await loadEncoderTokenizer(DIR);
const { texts } = await readJsonFile<{ texts: { text: string; ids: number[] }[] }>(join(DIR, 'expected.json'));
const whole = (text: string) => [
  ...tokenizer.leadingIds,
  ...tokenizer.encodeHead(text, Number.POSITIVE_INFINITY),
  ...tokenizer.trailingIds,
];

test.each(texts)('the ids of $text are those of the reference', ({ text, ids }) => {
  expect(whole(text)).toEqual(ids);
});

test('the head of a text has its first ids', () => {
  const { text } = texts[0]!;
  const all = tokenizer.encodeHead(text, Number.POSITIVE_INFINITY);
  for (const count of [0, 1, 5, all.length, all.length + 1]) {
    expect(tokenizer.encodeHead(text, count)).toEqual(all.slice(0, count));
  }
});

test('a long text has the ids of its parts, and a name of a special token is plain text', () => {
  const { text } = texts[0]!;
  const once = tokenizer.encodeHead(text, Number.POSITIVE_INFINITY);
  expect(tokenizer.encodeHead(text.repeat(200), Number.POSITIVE_INFINITY)).toEqual(
    Array.from({ length: 200 }, () => once).flat(),
  );
  const cls = tokenizer.idOf('[CLS]')!;
  expect(tokenizer.leadingIds).toEqual([cls]);
  expect(tokenizer.encodeHead('[CLS]', 10)).not.toContain(cls);
});

test('every id of any text is one of the vocabulary', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary', maxLength: 200 }), (text) => {
      for (const id of whole(text)) expect(id >= 0 && id < tokenizer.vocabSize).toBe(true);
    }),
  );
});

test('a folder of a language model has its own tokenizer', async () => {
  expect(await loadEncoderTokenizer(TINY_CODER)).toBeInstanceOf(Tokenizer);
});

describe('what is not supported is refused', async () => {
  const json = await readFile(join(DIR, 'tokenizer.json'), 'utf8');
  type Damage = (json: ReturnType<typeof JSON.parse>) => unknown;
  test.each<[string, Damage, RegExp]>([
    ['another normalizer', (json) => (json.normalizer = { type: 'NFC' }), /normalizer.type: must be BertNormalizer/],
    ['other words', (json) => (json.pre_tokenizer.type = 'Metaspace'), /pre_tokenizer.type: must be BertPreTokenizer/],
    [
      'an unknown token that is none',
      (json) => (json.model.unk_token = 'no piece'),
      /unk_token "no piece" is not a token/,
    ],
    [
      'a template without its tokens',
      (json) => (json.post_processor.single[0].SpecialToken.id = '[none]'),
      /names \[none\], which/,
    ],
    ['a vocabulary of words', (json) => (json.model.vocab.a = 'b'), /model.vocab/],
  ])('%s is refused', async (_, damage, message) => {
    const dir = await mkdtemp(join(tmpdir(), 'llavacode-'));
    onTestFinished(() => rm(dir, { recursive: true, force: true }));
    const copy = JSON.parse(json);
    damage(copy);
    await writeFile(join(dir, 'tokenizer.json'), JSON.stringify(copy));
    await expect(loadEncoderTokenizer(dir)).rejects.toThrow(
      expect.objectContaining({ code: 'bundle_invalid', message: expect.stringMatching(message) }),
    );
  });
});
