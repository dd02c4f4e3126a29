/**
 * The tokenizer that a GGUF file holds, in the form of a Hugging Face folder: byte-level BPE (`gpt2`), which all code
 * models of the supported architectures have. The file names how text is split into words before merging; each name
 * stands for the patterns that llama.cpp has for it.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ServingError } from '../../process/errors.ts';
import type { GgufHeader, GgufValue } from './gguf-header.ts';

interface WordForm {
  /** Patterns that split text, before bytes become symbols. */
  readonly splits: readonly object[];
  /** Whether GPT-2's own pattern splits after these. */
  readonly gpt2: boolean;
  readonly nfc?: true;
  /** Whether a word that is a token needs no merges. */
  readonly wholeWords?: true;
  /** Whether a beginning of text is put before every text, where the file does not say. */
  readonly bos?: true;
}

const split = (pattern: string) => ({
  type: 'Split',
  pattern: { Regex: pattern },
  behavior: 'Isolated',
  invert: false,
});
const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
/** The pattern of GPT-4 and those after it, with so many digits in one word. */
const gpt4 = (digits: string) =>
  split(
    `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`,
  );
const GPT2: WordForm = { splits: [], gpt2: true };
const SINGLE_DIGITS: WordForm = { splits: [{ type: 'Digits', individual_digits: true }], gpt2: true };
const QWEN2: WordForm = { splits: [gpt4('')], gpt2: false, nfc: true };
const LLAMA3: WordForm = { splits: [gpt4('{1,3}')], gpt2: false, wholeWords: true, bos: true };

/** By the names of `tokenizer.ggml.pre` that files of the supported architectures have. */
const WORD_FORMS: Readonly<Record<string, WordForm>> = {
  'gpt-2': GPT2,
  gpt2: GPT2,
  smollm: SINGLE_DIGITS,
  starcoder: SINGLE_DIGITS,
  refact: SINGLE_DIGITS,
  qwen2: QWEN2,
  'deepseek-r1-qwen': QWEN2,
  'llama-bpe': LLAMA3,
  llama3: LLAMA3,
  'llama-v3': LLAMA3,
};

/** Types of tokens: text, steering tokens, tokens with a text of their own, and numbers without any. */
const TOKEN = { normal: 1, control: 3, userDefined: 4, unused: 5 } as const;

export interface GgufTokenizer {
  /** The texts of `tokenizer.json` and `tokenizer_config.json`. */
  readonly json: string;
  readonly config: string;
  /** Number of ids, unused ones included. */
  readonly ids: number;
  /** Ids that end an answer. */
  readonly eosIds: readonly number[];
}

/** @throws ServingError checkpoint_invalid for a tokenizer of another kind, or one that is not consistent. */
export function readGgufTokenizer(file: string, metadata: GgufHeader['metadata']): GgufTokenizer {
  const invalid = (what: string) => new ServingError('checkpoint_invalid', `${file}: ${what}`);
  const get = (key: string) => metadata.get(`tokenizer.ggml.${key}`);
  const model = get('model');
  if (model !== 'gpt2') {
    const found = model === undefined ? 'is missing' : `${JSON.stringify(model)} is not supported`;
    throw invalid(
      `tokenizer.ggml.model ${found}: only byte-level BPE ("gpt2") is. Export the model's Hugging Face folder`,
    );
  }
  const pre = get('pre');
  const form = typeof pre === 'string' && Object.hasOwn(WORD_FORMS, pre) ? WORD_FORMS[pre] : undefined;
  if (form === undefined) {
    const known = Object.keys(WORD_FORMS).join(', ');
    throw invalid(
      `tokenizer.ggml.pre ${JSON.stringify(pre ?? null)} is not supported (${known} are): export the model's Hugging Face folder`,
    );
  }
  const texts = (key: string) =>
    listOf(get(key), (value) => typeof value === 'string') as readonly string[] | undefined;
  const tokens = texts('tokens');
  if (tokens === undefined || tokens.length === 0) throw invalid('tokenizer.ggml.tokens is not a list of texts');
  const merges = texts('merges');
  if (merges === undefined) throw invalid('tokenizer.ggml.merges is not a list of texts');
  const types = listOf(get('token_type'), (value) => typeof value === 'number') as readonly number[] | undefined;
  if (types?.length !== tokens.length) {
    throw invalid(`tokenizer.ggml.token_type does not name a type for each of the ${tokens.length} tokens`);
  }
  const used = tokens.flatMap((token, id) => (types[id] === TOKEN.unused ? [] : [[token, id] as const]));
  const vocab = new Map(used);
  if (vocab.size !== used.length) {
    const twice = used.find(([token, id]) => vocab.get(token) !== id)!;
    throw invalid(`tokenizer.ggml.tokens has ${JSON.stringify(twice[0])} twice`);
  }
  for (const merge of merges) {
    const pair = merge.split(' ');
    if (pair.length !== 2 || !vocab.has(pair.join(''))) {
      throw invalid(`tokenizer.ggml.merges has ${JSON.stringify(merge)}, which does not make a token`);
    }
  }
  const idOf = (key: string): number | undefined => {
    const id = get(key);
    if (id === undefined) return undefined;
    if (typeof id === 'number' && Number.isInteger(id) && id >= 0 && id < tokens.length) return id;
    throw invalid(`tokenizer.ggml.${key} ${id} is not one of the ${tokens.length} tokens`);
  };
  const [eos, eot] = [idOf('eos_token_id'), idOf('eot_token_id')];
  const bos = (get('add_bos_token') ?? form.bos ?? false) === true ? idOf('bos_token_id') : undefined;
  const added = used
    .filter(([, id]) => types[id] === TOKEN.control || types[id] === TOKEN.userDefined)
    .map(([content, id]) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: types[id] === TOKEN.control,
    }));
  const bytes = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: form.gpt2 };
  const json = {
    version: '1.0',
    added_tokens: added,
    normalizer: form.nfc === undefined ? null : { type: 'NFC' },
    pre_tokenizer: form.splits.length === 0 ? bytes : { type: 'Sequence', pretokenizers: [...form.splits, bytes] },
    post_processor: bos === undefined ? null : beginning(tokens[bos]!, bos),
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: 'BPE',
      ignore_merges: form.wholeWords === true,
      vocab: Object.fromEntries(vocab),
      merges: merges.map((merge) => merge.split(' ')),
    },
  };
  return {
    json: JSON.stringify(json),
    config: JSON.stringify(eos === undefined ? {} : { eos_token: tokens[eos] }),
    ids: tokens.length,
    eosIds: [...new Set([eos, eot].filter((id) => id !== undefined))],
  };
}

function listOf(value: GgufValue | undefined, fits: (value: GgufValue) => boolean): readonly GgufValue[] | undefined {
  return Array.isArray(value) && value.every(fits) ? value : undefined;
}

/** A template that puts a token before every text. */
function beginning(token: string, id: number) {
  const single = [{ SpecialToken: { id: token, type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }];
  return {
    type: 'TemplateProcessing',
    single,
    pair: [...single, { Sequence: { id: 'B', type_id: 1 } }],
    special_tokens: { [token]: { id: token, ids: [id], tokens: [token] } },
  };
}

/** Writes a tokenizer into a temporary folder, which `remove` removes. */
export async function writeTokenizer({ json, config }: GgufTokenizer) {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-gguf-'));
  await writeFile(join(dir, 'tokenizer.json'), json);
  await writeFile(join(dir, 'tokenizer_config.json'), config);
  return { dir, remove: () => rm(dir, { recursive: true, force: true }) };
}
