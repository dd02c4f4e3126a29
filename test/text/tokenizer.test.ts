import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Tokenizer as Library } from '@huggingface/tokenizers';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { atOnce } from '../../services/lib/async/turns.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { loadTokenizer, type Tokenizer } from '../../services/lib/text/tokenizer.ts';

const TINY = join(PACKAGE_ROOT, 'models/tiny-coder');
const BYTES = join(PACKAGE_ROOT, 'test/goldens/qwen2-tied');

const raw = JSON.parse(await readFile(join(TINY, 'tokenizer.json'), 'utf8'));
const tiny = await loadTokenizer(TINY);
const library = new Library(raw, {});
const libraryIds = (text: string) => library.encode(text, { add_special_tokens: false }).ids;

/** Pieces of code, so that random texts meet all cases of the pre-tokenizer. */
const fragment = fc.oneof(
  fc.constantFrom(
    'def ',
    'class',
    '\n',
    '\n\n',
    '\r\n',
    '    ',
    ' ',
    '\t',
    '():',
    "'s",
    '123',
    'é',
    'e\u0301',
    '漢字',
    '😀',
    '/',
  ),
  fc.string({ unit: 'binary', maxLength: 6 }),
);
const text = fc.array(fragment, { maxLength: 40 }).map((parts) => parts.join(''));
/** A text longer than one block, with lines at which blocks begin. */
const file = fc
  .array(fc.tuple(fc.constantFrom('', '  ', '\t', '}', '#', '/', '\n'), text), { minLength: 30, maxLength: 120 })
  .map((lines) => lines.map(([start, rest]) => `${start}${rest}\n`).join(''));

describe('encoding', () => {
  test('encoding gives the ids that the model was trained on', async () => {
    const expected = JSON.parse(await readFile(join(TINY, 'expected.json'), 'utf8'));
    expect(tiny.encode(tiny.decode(expected.prefix.input_ids))).toEqual(expected.prefix.input_ids);
    expect(tiny.encode(tiny.decode(expected.fim.input_ids), 'as tokens')).toEqual(expected.fim.input_ids);
  });

  test('encoding gives the ids of the library, block by block and from the cache too', () => {
    fc.assert(
      fc.property(fc.oneof(text, file), (sample) => {
        fc.pre(!sample.includes('<|'));
        expect(tiny.encode(sample)).toEqual(libraryIds(sample));
        expect(tiny.encode(sample)).toEqual(libraryIds(sample));
      }),
      { numRuns: 150 },
    );
  });

  test('the ids of head and tail are the ends of all ids', async () => {
    const bytes = await loadTokenizer(BYTES);
    fc.assert(
      fc.property(file, fc.nat(3000), (sample, count) => {
        for (const tokenizer of [tiny, bytes]) {
          const whole = tokenizer.encode(sample);
          expect(tokenizer.encodeHead(sample, count)).toEqual(whole.slice(0, count));
          expect(tokenizer.encodeTail(sample, count)).toEqual(whole.slice(Math.max(0, whole.length - count)));
        }
      }),
      { numRuns: 60 },
    );
  });

  test('a text that is one line of many blocks has the ids of the library, and its ends are the ends of all ids', () => {
    const sentence = text.map((words) => `${words} x `.replace(/[\n\r<]/g, ';'));
    const line = fc.array(sentence, { minLength: 20, maxLength: 40 }).map((parts) => parts.join('').repeat(60));
    fc.assert(
      fc.property(line, fc.nat(6000), (sample, count) => {
        const whole = tiny.encode(sample);
        expect(whole).toEqual(libraryIds(sample));
        expect(tiny.encodeHead(sample, count)).toEqual(whole.slice(0, count));
        expect(tiny.encodeTail(sample, count)).toEqual(whole.slice(Math.max(0, whole.length - count)));
      }),
      { numRuns: 10 },
    );
  });

  test.each([
    ['spaces', 'for (var i = 0; i < x.length; i++) { f(i); } '],
    ['none', 'for(var/**/i=0;i<x.length;i++){f(i);}'],
    ['digits only', '0123456789'],
  ])('the head and the tail of 4 MiB without a line break cost no more than what is asked for: %s', (_, part) => {
    const sample = part.repeat(Math.ceil(2 ** 22 / part.length));
    const before = process.cpuUsage();
    const [head, tail] = [tiny.encodeHead(sample, 1000), tiny.encodeTail(sample, 1000)];
    // In ms of CPU time: 20 measured, and 1,500 as one block.
    expect(process.cpuUsage(before).user / 1000).toBeLessThan(400);
    expect(sample.startsWith(tiny.decode(head))).toBe(true);
    expect(sample.endsWith(tiny.decode(tail))).toBe(true);
  });

  test('ids decode back to the text', () => {
    fc.assert(
      fc.property(text, (sample) => {
        expect(tiny.decode(tiny.encode(sample))).toBe(Buffer.from(sample).toString());
      }),
    );
  });

  test('the name of a token in a text is plain characters, and the token only on request', () => {
    const middle = tiny.idOf('<|fim_middle|>')!;
    const source = 'a <|fim_middle|> b';
    expect(tiny.encode(source)).not.toContain(middle);
    expect(tiny.decode(tiny.encode(source))).toBe(source);
    expect(tiny.encode(source, 'as tokens')).toEqual([...tiny.encode('a '), middle, ...tiny.encode(' b')]);
    expect(tiny.encode(source, 'as tokens')).toEqual(libraryIds(source));
    expect(tiny.encodeTail(source, 2, 'as tokens')).toEqual(tiny.encode(source, 'as tokens').slice(-2));
  });

  test('one word of a million characters is encoded', () => {
    const word = 'x'.repeat(1_000_000);
    expect(tiny.encodeTail(word, 10)).toHaveLength(10);
    expect(tiny.decode(tiny.encodeHead(`😀${word}`, 600))).toMatch(/^😀x+$/u);
  });

  test('a tokenizer without a word pattern of its own splits like GPT-2', async () => {
    const bytes = await loadTokenizer(BYTES);
    expect(bytes.decode(bytes.encode('def f():\n    return 1\n'))).toBe('def f():\n    return 1\n');
    expect(bytes.encode('ab')).toHaveLength(2);
  });
});

describe('tokens', () => {
  test('tokens have names, bytes and ids in the vocabulary', () => {
    expect(tiny.vocabSize).toBe(4096);
    expect(tiny.eosId).toBe(tiny.idOf('<|endoftext|>'));
    expect(tiny.isSpecial(tiny.eosId!)).toBe(true);
    expect(tiny.isSpecial(0)).toBe(false);
    expect(tiny.idOf('def')).toBeUndefined();
    expect(tiny.bytes(tiny.eosId!)).toEqual(Buffer.from('<|endoftext|>'));
    expect(tiny.bytes(999_999)).toHaveLength(0);
  });

  test('the tokens before every text are known', async () => {
    const withBos = await loadWith((json) => {
      json.post_processor = {
        type: 'TemplateProcessing',
        single: [{ SpecialToken: { id: '<|repo_name|>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
        pair: [],
        special_tokens: { '<|repo_name|>': { id: '<|repo_name|>', ids: [4094], tokens: ['<|repo_name|>'] } },
      };
    });
    expect(withBos.leadingIds).toEqual([4094]);
    expect(tiny.leadingIds).toEqual([]);
  });
});

describe('a broken tokenizer.json', () => {
  const cases: [string, (json: typeof raw) => unknown, RegExp][] = [
    ['another model', (json) => (json.model.type = 'Unigram'), /model\.type: must be BPE/],
    ['no vocabulary', (json) => delete json.model.vocab, /model\.vocab/],
    ['a byte without a token', (json) => delete json.model.vocab['!'], /no token for byte 33/],
    ['one id twice', (json) => (json.model.vocab['!'] = json.model.vocab['#']), /id \d+ to/],
    ['a huge id', (json) => (json.added_tokens[0].id = 4_000_000_000), /token id 4000000000/],
    ['a negative id', (json) => (json.added_tokens[0].id = -1), /added_tokens\.0\.id/],
    ['no byte symbols', (json) => (json.pre_tokenizer = { type: 'Whitespace' }), /ends with Whitespace/],
    [
      'a merge to no token',
      (json) => (json.model.merges[0] = ['\u0100', '\u0101']),
      /model\.merges makes "ĀĀ?.*not a token/,
    ],
    ['an unknown token that is none', (json) => (json.model.unk_token = ''), /model\.unk_token "" is not a token/],
    ['word suffixes', (json) => (json.model.end_of_word_suffix = '</w>'), /model\.end_of_word_suffix: must be empty/],
    ['a split by nothing', (json) => (json.pre_tokenizer.pretokenizers[0].pattern = {}), /pre_tokenizer/],
    [
      'a split that removes text',
      (json) => (json.pre_tokenizer.pretokenizers[0].behavior = 'Removed'),
      /pre_tokenizer Split, behavior Removed/,
    ],
    [
      'words without what is between',
      (json) => (json.pre_tokenizer.pretokenizers[0].type = 'WhitespaceSplit'),
      /Digits/,
    ],
    ['a merge of three', (json) => (json.model.merges[0] = ['a', 'b', 'c']), /model\.merges\.0/],
    ['a part that nobody knows', (json) => (json.normalizer = { type: 'Magic' }), /Magic/],
  ];
  test.each(cases)('a tokenizer.json with %s is refused by name', async (_, break_, message) => {
    await expect(loadWith(break_)).rejects.toMatchObject({
      code: 'bundle_invalid',
      message: expect.stringMatching(message),
    });
  });

  test('a tokenizer.json of any shape gives a tokenizer or a coded error', async () => {
    const json = JSON.stringify({ ...raw, model: { ...raw.model, merges: [] } });
    await fc.assert(
      fc.asyncProperty(fc.nat(json.length - 1), fc.string({ maxLength: 3 }), async (at, patch) => {
        await writeFile(join(dir, 'tokenizer.json'), json.slice(0, at) + patch + json.slice(at + patch.length + 1));
        await loadTokenizer(dir).catch((error) => expect(error.code).toBe('bundle_invalid'));
      }),
      { numRuns: 40 },
    );
    await writeFile(join(dir, 'tokenizer.json'), json.slice(0, json.length / 2));
    await expect(loadTokenizer(dir)).rejects.toMatchObject({ code: 'bundle_invalid' });
    await expect(loadTokenizer(join(dir, 'nowhere'))).rejects.toMatchObject({ code: 'bundle_invalid' });
  });

  let dir: string;
  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), 'tokenizer-'));
  });
  afterAll(() => rm(dir, { recursive: true }));
});

async function loadWith(change: (json: typeof raw) => unknown): Promise<Tokenizer> {
  const dir = await mkdtemp(join(tmpdir(), 'tokenizer-'));
  try {
    const json = structuredClone(raw);
    change(json);
    await writeFile(join(dir, 'tokenizer.json'), JSON.stringify(json));
    return await loadTokenizer(dir);
  } finally {
    await rm(dir, { recursive: true });
  }
}

test('ids decoded in steps give the text that they give in one go, also where a step ends within a character', () => {
  const ids = fc.array(fc.integer({ min: 0, max: tiny.vocabSize - 1 }), { minLength: 1, maxLength: 60 });
  fc.assert(
    fc.property(ids, fc.integer({ min: 1, max: 80 }), (some, times) => {
      const all = Array.from({ length: times }, () => some).flat();
      expect(atOnce(tiny.decodeSteps(Int32Array.from(all)))).toBe(tiny.decode(all));
    }),
  );
});

test('no step of decoding takes more than a small part of many ids', () => {
  expect([...tiny.decodeSteps(new Int32Array(100_000))].length).toBeGreaterThan(50);
});
