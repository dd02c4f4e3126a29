import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Tokenizer as Library } from '@huggingface/tokenizers';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import { readTokenizerJson } from '../../services/lib/text/tokenizer-json.ts';

const TINY = JSON.parse(await readFile(join(PACKAGE_ROOT, 'models/tiny-coder/tokenizer.json'), 'utf8'));
/** A small vocabulary: bytes and some merges, so that words are more than bytes. */
const MERGES = TINY.model.merges.slice(0, 300) as [string, string][];
const KNOWN = new Set([...Object.keys(TINY.model.vocab).slice(0, 256), ...MERGES.map((pair) => pair.join(''))]);
const VOCAB = Object.fromEntries([...KNOWN].map((token, id) => [token, id]));

interface Flags {
  readonly lstrip: boolean;
  readonly rstrip: boolean;
  readonly normalized: boolean;
  readonly special: boolean;
  readonly single_word: boolean;
}
const NORMALIZERS = [
  null,
  { type: 'Sequence', normalizers: [] },
  { type: 'NFC' },
  { type: 'NFKD' },
  { type: 'Lowercase' },
  { type: 'Sequence', normalizers: [{ type: 'NFD' }, { type: 'Lowercase' }] },
  { type: 'Replace', pattern: { String: 'x' }, content: 'yy' },
];
const DEEPSEEK = {
  type: 'Sequence',
  pretokenizers: [
    { type: 'Split', pattern: { Regex: '\\p{N}{1,3}' }, behavior: 'Isolated', invert: false },
    { type: 'Split', pattern: { Regex: '[一-龥\u3040-ゟ゠-ヿ]+' }, behavior: 'Isolated', invert: false },
    TINY.pre_tokenizer.pretokenizers[0],
    { type: 'ByteLevel', add_prefix_space: false, use_regex: false },
  ],
};
const PRE_TOKENIZERS = [
  TINY.pre_tokenizer,
  { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
  { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
  DEEPSEEK,
];
/** Names that are parts of one another, overlap, and have characters that normalisation changes. */
const NAMES = ['<a>', '<a><b>', '<b>', '><', 'É!', 'return', 'Re', '<｜x｜>', 'a_b', '😀'];

function jsonOf(flags: readonly Flags[], normalizer: unknown, pre_tokenizer: unknown) {
  const added_tokens = flags.map((each, i) => ({ id: 5_000 + i, content: NAMES[i], ...each }));
  // Other text has these as its normal form. The library takes a section of such text for the token, Rust does not.
  for (const token of added_tokens) if (['É!', 'return'].includes(token.content!)) token.normalized = true;
  return {
    ...TINY,
    added_tokens,
    normalizer,
    pre_tokenizer,
    model: { ...TINY.model, vocab: VOCAB, merges: MERGES },
  };
}
const tokenizerOf = (json: unknown) => new Tokenizer(readTokenizerJson(JSON.stringify(json), 'tokenizer.json'));

const anyFlags = (single_word: fc.Arbitrary<boolean>) =>
  fc.array(
    fc.record({
      lstrip: fc.boolean(),
      rstrip: fc.boolean(),
      normalized: fc.boolean(),
      special: fc.boolean(),
      single_word,
    }),
    { minLength: NAMES.length, maxLength: NAMES.length },
  );
const piece = fc.oneof(
  { weight: 3, arbitrary: fc.constantFrom(...NAMES) },
  { weight: 2, arbitrary: fc.constantFrom(' ', '  ', '\n', '\t', '\r\n', '    ', '\n\n', '\u00a0') },
  fc.constantFrom(
    '<',
    '>',
    'a',
    '<a',
    'E\u0301!',
    'é!',
    'RETURN',
    'x',
    'Σ',
    'ﬁ',
    'def f():',
    '12345',
    '漢字',
    "'s",
    '_',
  ),
  fc.string({ unit: 'binary', maxLength: 4 }),
);
const shortText = fc.array(piece, { maxLength: 40 }).map((pieces) => pieces.join(''));
/** Lines of code enough for several blocks, slices and steps. */
const longText = fc.array(shortText, { minLength: 40, maxLength: 60 }).map((lines) =>
  lines
    .map((line) => `value = f(${line})\nreturn it\n`)
    .join('')
    .repeat(2),
);

const setUp = fc.tuple(
  anyFlags(fc.constant(false)),
  fc.constantFrom(...NORMALIZERS),
  fc.constantFrom(...PRE_TOKENIZERS),
);

describe('added tokens in a text', () => {
  test.each([
    ['short texts', shortText, 80],
    ['long texts', longText, 12],
  ] as const)(
    'added tokens of all options are found as by the library, in the whole text and its ends: %s',
    (_, text, numRuns) => {
      const samples = fc.array(text, { minLength: 1, maxLength: 4 });
      fc.assert(
        fc.property(setUp, samples, fc.nat(300), ([flags, normalizer, preTokenizer], texts, count) => {
          const json = jsonOf(flags, normalizer, preTokenizer);
          const library = new Library(json, {});
          const ours = tokenizerOf(json);
          for (const sample of texts) {
            const whole = ours.encode(sample, 'as tokens');
            expect(whole).toEqual(library.encode(sample, { add_special_tokens: false }).ids);
            expect(ours.encodeHead(sample, count, 'as tokens')).toEqual(whole.slice(0, count));
            const tail = whole.slice(Math.max(0, whole.length - count));
            expect(ours.encodeTail(sample, count, 'as tokens')).toEqual(tail);
          }
        }),
        { numRuns },
      );
    },
  );
});
