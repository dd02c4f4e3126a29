/** SentencePiece's BPE as tokenizer.json has it: the library's ids, and text that comes token by token. */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Tokenizer as Library } from '@huggingface/tokenizers';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { atOnce } from '../../services/lib/async/turns.ts';
import { SAMPLE_REPOSITORY } from '../../services/lib/process/package-root.ts';
import { Detokenizer } from '../../services/lib/text/detokenizer.ts';
import { PromptBuilder } from '../../services/lib/text/prompt.ts';
import { choosePromptFormat } from '../../services/lib/text/prompt-format.ts';
import { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import { readTokenizerJson } from '../../services/lib/text/tokenizer-json.ts';
import { fakeGateway } from '../support/fake-gateway.ts';

/** Words whose letters are merged one after the other, the first words first. */
const WORDS = ['▁▁', '▁▁▁▁', '▁def', '▁return', 'self', '▁self', 'or', 'er', '▁=', '():', '▁x', 'é', '▁the', '\n\n'];
const replace = { type: 'Replace', pattern: { String: ' ' }, content: '▁' };
const CODE_LLAMA = { type: 'Sequence', normalizers: [{ type: 'Prepend', prepend: '▁' }, replace] };
const NAMES = ['<unk>', '<s>', '</s>', '▁<PRE>', '▁<SUF>', '▁<MID>', '▁<EOT>'];

/** A tokenizer.json of the form of Code Llama's, or of CodeGemma's with another normalizer. */
function made(change: object = {}, words = WORDS) {
  const bytes = Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, '0')}>`);
  const letters = Array.from({ length: 94 }, (_, i) => String.fromCharCode(33 + i));
  const tokens = new Set([...NAMES, ...bytes, '▁', ...letters, ...words.flatMap((word) => [...word])]);
  const merges: [string, string][] = [];
  for (const word of words) {
    const parts = [...word];
    for (let i = 1; i < parts.length; i++) {
      merges.push([parts.slice(0, i).join(''), parts[i]!]);
      tokens.add(parts.slice(0, i + 1).join(''));
    }
  }
  const vocab = Object.fromEntries([...tokens].map((token, id) => [token, id]));
  return {
    added_tokens: NAMES.map((content) => ({ id: vocab[content], content, special: true, normalized: false })),
    normalizer: CODE_LLAMA,
    pre_tokenizer: null,
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [],
      special_tokens: { '<s>': { id: '<s>', ids: [vocab['<s>']], tokens: ['<s>'] } },
    },
    decoder: null,
    model: { type: 'BPE', vocab, merges, byte_fallback: true, fuse_unk: true, unk_token: '<unk>' },
    ...change,
  };
}
const read = (json: object) => readTokenizerJson(JSON.stringify(json), 'tokenizer.json');
const tokenizer = new Tokenizer(read(made()));
const library = new Library(made(), {});
const idsOf = (from: Library, text: string) => from.encode(text, { add_special_tokens: false }).ids;
const textOf = (ids: readonly number[]) => {
  const detokenizer = new Detokenizer(
    (id) => tokenizer.bytes(id),
    () => false,
  );
  return ids.map((id) => detokenizer.push(id)).join('') + detokenizer.end();
};

const fragment = fc.oneof(
  fc.constantFrom(
    'def ',
    ' return',
    'self',
    '    ',
    ' ',
    '\n',
    '\n\n',
    '\t',
    '():',
    '  x',
    'é',
    '漢字',
    '😀',
    '▁',
    '\0',
  ),
  fc.string({ unit: 'binary', maxLength: 6 }),
);
const text = fc.array(fragment, { maxLength: 40 }).map((parts) => parts.join(''));
/** Longer than one block. */
const file = fc
  .array(text, { minLength: 30, maxLength: 100 })
  .map((lines) => lines.map((line) => `${line}\n`).join('x y'));
/** The longest word is cut for the sake of time; code has none. */
const hasLongWord = (sample: string) => /[^ ▁\n]{100}|[ ▁]{100}|\n{100}/.test(sample);

describe.each([
  ['Code Llama', made()],
  [
    'CodeGemma',
    made({
      normalizer: replace,
      pre_tokenizer: { type: 'Split', pattern: { String: ' ' }, behavior: 'MergedWithPrevious' },
    }),
  ],
])('of the form of %s', (_, json) => {
  const own = new Tokenizer(read(json));
  // The library has no split that does nothing.
  const expected = new Library({ ...json, pre_tokenizer: null }, {});

  test('the ids are those of the library, from either end, block by block and from the cache', () => {
    const property = fc.property(fc.oneof(text, file), fc.integer({ min: 1, max: 200 }), (sample, count) => {
      fc.pre(!hasLongWord(sample));
      const ids = idsOf(expected, sample);
      expect(own.encode(sample)).toEqual(ids);
      expect(own.encodeHead(sample, count)).toEqual(ids.slice(0, count));
      expect(own.encodeTail(sample, count)).toEqual(ids.slice(-count));
    });
    fc.assert(property, { numRuns: 500 });
  });

  test('also of real files, and with the names of tokens in them', async () => {
    const names = await readdir(join(SAMPLE_REPOSITORY, 'shop'));
    const files = await Promise.all(
      names
        .filter((name) => name.endsWith('.py'))
        .map((name) => readFile(join(SAMPLE_REPOSITORY, 'shop', name), 'utf8')),
    );
    expect(files.length).toBeGreaterThan(5);
    for (const [i, sample] of files.entries()) {
      expect(own.encode(sample)).toEqual(idsOf(expected, sample));
      const named = `▁<PRE>${sample}▁<SUF> ${files.at(i - 1)!}▁<MID>`;
      expect(own.encode(named, 'as tokens')).toEqual(idsOf(expected, named));
    }
  });
});

test('text comes back token by token, bytes and spaces included', () => {
  const property = fc.property(text, (sample) => {
    fc.pre(!sample.includes('▁')); // it is a space
    const ids = tokenizer.encode(sample);
    expect(textOf(ids)).toBe(sample === '' ? '' : ` ${sample}`);
    expect(tokenizer.decode(ids)).toBe(textOf(ids));
    expect(textOf(tokenizer.encode(sample, 'as text', 'within'))).toBe(sample);
  });
  fc.assert(property, { numRuns: 500 });
  expect(tokenizer.leadingIds).toEqual([tokenizer.idOf('<s>')]);
  expect(tokenizer.eosId).toBe(tokenizer.idOf('</s>'));
});

test('a prompt for the middle is framed as Code Llama was trained: a space before LEFT, and none before RIGHT', () => {
  const format = choosePromptFormat(tokenizer);
  expect(format.name).toBe('codellama');
  const ids = (order: 'psm' | 'spm') => {
    const parts = { prompt: 'def f(self):\n    return ', suffix: '\n\nself x', capacity: 500, maxTokens: 10 };
    return [...atOnce(new PromptBuilder(tokenizer, format, order).build(parts)).ids];
  };
  const [bos, pre, suf, mid] = ['<s>', '▁<PRE>', '▁<SUF>', '▁<MID>'].map((name) => tokenizer.idOf(name)!);
  const left = idsOf(library, 'def f(self):\n    return ');
  const right = idsOf(new Library(made({ normalizer: replace }), {}), '\n\nself x');
  expect(ids('psm')).toEqual([bos, pre, ...left, suf, ...right, mid]);
  expect(ids('spm')).toEqual([bos, pre, suf, ...right, mid, ...left]);
});

test('a gateway streams such text as it comes, stops within it, and frames the middle', async () => {
  const answer = '    self.é = 漢字 😀\n  x';
  const ids = tokenizer.encode(answer, 'as text', 'within');
  const token = (position: number) => ids[position] ?? tokenizer.idOf('▁<EOT>')!;
  const { complete, stream, workers } = await fakeGateway({ token }, { tokenizer });
  const body = { prompt: 'def f(self):\n', suffix: '\nself', max_tokens: 100, temperature: 0 };
  const events = await stream(body);
  expect(events.map(({ choices }) => choices[0]?.text ?? '').join('')).toBe(answer);
  expect((await complete(body)).choices[0]).toMatchObject({ text: answer, finish_reason: 'stop' });
  expect((await complete({ ...body, stop: ['字'] })).choices[0]!.text).toBe('    self.é = 漢');
  const { tokenIds } = workers.prefills[0]!;
  expect([tokenIds![1], tokenIds!.at(-1)]).toEqual(['▁<PRE>', '▁<MID>'].map((name) => tokenizer.idOf(name)));
});

test.each([
  [{ normalizer: null, pre_tokenizer: { type: 'Metaspace', replacement: '▁' } }, /normalizer nothing is not supported/],
  [{ normalizer: { type: 'NFKC' } }, /normalizer NFKC is not supported/],
  [{ normalizer: { ...replace, content: '_' } }, /must make ▁ of spaces/],
  [{ pre_tokenizer: { type: 'ByteLevel' } }, /pre_tokenizer ByteLevel is not supported/],
  [
    { added_tokens: [{ id: 5, content: 'a b', normalized: true }] },
    /added token "a b" is looked for in normalised text/,
  ],
])('another form is refused by its field: %j', (change, message) => {
  expect(() => new Tokenizer(read(made(change)))).toThrow(message);
});

test('a vocabulary whose tokens lie across words, or that lacks a byte, is refused', () => {
  expect(() => new Tokenizer(read(made({}, [...WORDS, 'a▁b'])))).toThrow(/"a▁": a space or a line end within a token/);
  expect(() => new Tokenizer(read(made({}, [...WORDS, ';\n'])))).toThrow(/a space or a line end within a token/);
  const json = made();
  const { '<0xF0>': _, ...vocab } = json.model.vocab;
  expect(() => new Tokenizer(read({ ...json, model: { ...json.model, vocab } }))).toThrow(/no token <0xF0>/);
});
