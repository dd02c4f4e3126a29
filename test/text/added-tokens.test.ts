import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as library from '@huggingface/tokenizers';
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
    ['short texts', shortText, 60],
    ['long texts', longText, 8],
  ] as const)(
    'added tokens of all options are found as by the library, in the whole text and its ends: %s',
    (_, text, numRuns) => {
      const samples = fc.array(text, { minLength: 1, maxLength: 4 });
      fc.assert(
        fc.property(setUp, samples, fc.nat(300), ([flags, normalizer, preTokenizer], texts, count) => {
          const json = jsonOf(flags, normalizer, preTokenizer);
          const theirs = new library.Tokenizer(json, {});
          const ours = tokenizerOf(json);
          for (const sample of texts) {
            const whole = ours.encode(sample, 'as tokens');
            expect(whole).toEqual(theirs.encode(sample, { add_special_tokens: false }).ids);
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

/** What Hugging Face's own tokenizers 0.23 do; the library ignores this option. */
describe('a token that must be a word of its own', () => {
  const flags = { lstrip: false, rstrip: false, normalized: false, special: false, single_word: true };
  const ours = tokenizerOf(
    jsonOf(
      NAMES.map(() => flags),
      null,
      TINY.pre_tokenizer,
    ),
  );
  const id = 5_000 + NAMES.indexOf('a_b');

  test.each(['a_b', '(a_b)', ' a_b ', '<a_b>', '-a_b', 'x\na_b\n', '\u00a0a_b😀'])('it is found in %j', (text) => {
    expect(ours.encode(text, 'as tokens')).toContain(id);
  });

  test.each(['a_b_', 'xa_b', 'a_b1', 'éa_b', 'a_b\u0301', '漢a_b', '\u200da_b', '𝒳a_b', 'a_b𝒳'])(
    'it is not found in %j',
    (text) => {
      expect(ours.encode(text, 'as tokens')).toEqual(ours.encode(text));
      expect(ours.encode(text, 'as tokens')).not.toContain(id);
    },
  );
});

describe('steps', () => {
  /** The parts of the library whose work takes time; its types do not name them. */
  const PARTS = library as unknown as Record<string, { prototype: Record<string, (given: never) => unknown> }>;
  const COUNTED: [part: string, method: string, size: (given: never) => number][] = [
    ['SplitPreTokenizer', 'pre_tokenize_text', (text: string) => text.length],
    ['NFCNormalizer', 'normalize', (text: string) => text.length],
    ['BPE', 'encode', (words: string[]) => words.join('').length],
  ];

  /** The number of steps, and the most characters that the library gets in one of them. */
  function measured(steps: Generator<void, unknown>): { steps: number; characters: number } {
    let [now, characters, count] = [0, 0, 0];
    const restore = COUNTED.map(([part, method, size]) => {
      const { prototype } = PARTS[part]!;
      const original = prototype[method]!;
      prototype[method] = function (this: unknown, given: never) {
        now += size(given);
        return original.call(this, given);
      };
      return () => {
        prototype[method] = original;
      };
    });
    for (let step = steps.next(); !step.done; step = steps.next()) {
      characters = Math.max(characters, now);
      now = 0;
      count++;
    }
    for (const each of restore) each();
    return { steps: count, characters };
  }

  const HOSTILE: [name: string, part: string][] = [
    ['code', 'value = f(x)\nreturn it\n'],
    ['one letter', 'a'],
    ['spaces', ' '],
    ['line ends', '\r\n'],
    ['digits', '1'],
    ['Chinese', '漢字語'],
    ['emoji', '😀'],
    ['accents', '\u0301\u0323'],
    ['names of tokens', '<a><b> '],
    ['beginnings of names of tokens', '<｜x'],
  ];
  const flags = { lstrip: true, rstrip: true, normalized: true, special: false, single_word: false };
  const plain = tokenizerOf(jsonOf([], null, TINY.pre_tokenizer));
  const intricate = tokenizerOf(
    jsonOf(
      NAMES.map((_, i) => ({ ...flags, normalized: i % 2 === 0 })),
      { type: 'NFC' },
      DEEPSEEK,
    ),
  );

  test.each(HOSTILE)('no step of a long text of %s is long, from its head or its tail', (_, part) => {
    const text = part.repeat(2 ** 18 / part.length);
    for (const [tokenizer, stages] of [
      [plain, 1],
      [intricate, 4],
    ] as const) {
      for (const work of [
        tokenizer.headSteps(text, 2_048, 'as tokens'),
        tokenizer.tailSteps(text, 2_048, 'as tokens'),
      ]) {
        const { steps, characters } = measured(work);
        // A block goes through each pattern once, or a slice is normalised, and a word of 128 characters is merged.
        expect(characters).toBeLessThan(stages * 4_200 + 600);
        expect(steps).toBeGreaterThan(16);
      }
    }
  });
});
