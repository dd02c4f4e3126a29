/** The token ids that each encoder reads of a chunk. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type InputBuilder, inputBuilder } from '../../../services/lib/rag/encode/encoder-input.ts';

/** Byte-level BPE without merges: ids below 256 are bytes. */
const MARKS = ['AST#assignment#Left', 'AST#assignment#Right', 'AST#call#Left'];
const SPECIALS = ['<s>', '<pad>', '</s>', '<unk>', '<encoder-only>', '<|endoftext|>'];
const idOf = (token: string) => 256 + [...SPECIALS, ...MARKS].indexOf(token);

/** GPT-2's symbol of each byte. */
function symbols(): string[] {
  const shown = (byte: number) => (byte > 32 && byte < 127) || (byte > 160 && byte < 173) || byte > 173;
  let hidden = 0;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(shown(byte) ? byte : 256 + hidden++));
}

async function writeTokenizer(dir: string, template: boolean): Promise<void> {
  const vocab = [...symbols(), ...SPECIALS, ...MARKS];
  const end = { id: '<|endoftext|>', type_id: 0 };
  const json = {
    version: '1.0',
    added_tokens: SPECIALS.map((content) => ({
      id: idOf(content),
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor: template
      ? {
          type: 'TemplateProcessing',
          single: [{ Sequence: { id: 'A', type_id: 0 } }, { SpecialToken: end }],
          pair: [],
          special_tokens: { '<|endoftext|>': { id: end.id, ids: [idOf(end.id)], tokens: [end.id] } },
        }
      : null,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: { type: 'BPE', vocab: Object.fromEntries(vocab.map((token, id) => [token, id])), merges: [] },
  };
  await writeFile(join(dir, 'tokenizer.json'), JSON.stringify(json));
}

let plain: string;
let templated: string;
beforeAll(async () => {
  [plain, templated] = (await Promise.all([0, 1].map(() => mkdtemp(join(tmpdir(), 'llavacode-input-'))))) as [
    string,
    string,
  ];
  await writeTokenizer(plain, false);
  await writeTokenizer(templated, true);
});
afterAll(() => Promise.all([plain, templated].map((dir) => rm(dir, { recursive: true, force: true }))));

const BASE = { input: 'text', recipe: 'authors', modality: 'source', addSpecialTokens: false, maxTokens: 16 } as const;
const bytes = (text: string) => [...Buffer.from(text)];
const chunk = (text: string, path = 'a.py') => ({ path, text });

async function ids(
  builder: Promise<InputBuilder>,
  text: string,
  path?: string,
): Promise<{ ids: readonly number[]; fellBack: boolean }> {
  const inputs = await builder;
  const found = inputs.build(chunk(text, path));
  inputs.dispose();
  return found;
}

describe('a language model', () => {
  test("a language model with the authors' recipe reads the code and nothing else", async () => {
    expect(await ids(inputBuilder('', plain, BASE), 'ab')).toEqual({ ids: bytes('ab'), fellBack: false });
    expect((await ids(inputBuilder('', templated, BASE), 'ab')).ids).toEqual(bytes('ab'));
  });

  test('a language model with the published recipe reads one end of text after the code, however long it is', async () => {
    const published = { ...BASE, recipe: 'published' } as const;
    const end = idOf('<|endoftext|>');
    for (const dir of [plain, templated]) {
      expect((await ids(inputBuilder('', dir, published), 'ab')).ids).toEqual([...bytes('ab'), end]);
      const long = (await ids(inputBuilder('', dir, published), 'x'.repeat(99))).ids;
      expect(long).toHaveLength(16);
      expect(long.at(-1)).toBe(end);
    }
    const both = { ...published, addSpecialTokens: true };
    expect((await ids(inputBuilder('', templated, both), 'ab')).ids).toEqual([...bytes('ab'), end]);
  });
});

describe('UniXcoder', () => {
  const unixcoder = { ...BASE, input: 'unixcoder', maxTokens: 40 } as const;
  const around = (inner: number[]) => [idOf('<s>'), idOf('<encoder-only>'), idOf('</s>'), ...inner, idOf('</s>')];

  test('UniXcoder reads source between the tokens of its encoder mode', async () => {
    expect((await ids(inputBuilder('', plain, unixcoder), 'ab')).ids).toEqual(around(bytes('ab')));
    expect((await ids(inputBuilder('', plain, { ...unixcoder, maxTokens: 6 }), 'abc')).ids).toEqual(
      around(bytes('ab')),
    );
  });

  const ast = { ...unixcoder, modality: 'ast' } as const;

  test('UniXcoder reads a syntax tree, known marks by their ids and others as unknown', async () => {
    const call = [...bytes('f'), idOf('<unk>'), ...bytes('()'), idOf('<unk>')];
    const inner = [idOf(MARKS[0]!), ...bytes('x='), idOf(MARKS[2]!), ...call, idOf('<unk>'), idOf(MARKS[1]!)];
    expect(await ids(inputBuilder('', plain, ast), 'x = f()')).toEqual({ ids: around(inner), fellBack: false });
  });

  test('UniXcoder reads no more than its length, and still gets its closing token', async () => {
    const found = (await ids(inputBuilder('', plain, { ...ast, maxTokens: 8 }), 'x = f()')).ids;
    expect(found).toEqual(around([idOf(MARKS[0]!), ...bytes('x='), idOf(MARKS[2]!)]));
  });

  test('UniXcoder reads the source of code that does not parse, and reports it', async () => {
    expect(await ids(inputBuilder('', plain, ast), 'hello', 'notes.md')).toEqual({
      ids: around(bytes('hello')),
      fellBack: true,
    });
    // A chunk of comments alone is read by its source: with an empty sequence all such chunks would be alike.
    expect((await ids(inputBuilder('', plain, ast), '// why', 'A.java')).ids).toEqual(around(bytes('// why')));
  });
});

test('a tokenizer that lacks a token of the input is refused by name', async () => {
  const bare = await mkdtemp(join(tmpdir(), 'llavacode-input-'));
  try {
    await writeTokenizer(bare, false);
    const file = join(bare, 'tokenizer.json');
    await writeFile(file, (await readFile(file, 'utf8')).replaceAll('<encoder-only>', '<gone>'));
    await expect(inputBuilder('the bundle', bare, { ...BASE, input: 'unixcoder' })).rejects.toMatchObject({
      code: 'bundle_invalid',
      message: expect.stringContaining('<encoder-only>'),
    });
  } finally {
    await rm(bare, { recursive: true, force: true });
  }
});
