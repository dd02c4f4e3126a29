/** Checks tokenizer.json before anything trusts it: BPE of bytes, sound ids, a token for every byte of code. */
import { z } from 'zod';
import { ServingError } from '../process/errors.ts';
import { reasonOf } from '../process/os-errors.ts';

const addedToken = z.looseObject({
  id: z.int().min(0),
  content: z.string().min(1),
  special: z.boolean().optional(),
  lstrip: z.boolean().optional(),
  rstrip: z.boolean().optional(),
  single_word: z.boolean().optional(),
  normalized: z.boolean().optional(),
});

const preTokenizer = z.looseObject({
  type: z.string(),
  use_regex: z.boolean().optional(),
  pattern: z
    .union([z.looseObject({ Regex: z.string().min(1) }), z.looseObject({ String: z.string().min(1) })])
    .optional(),
  behavior: z.string().optional(),
  add_prefix_space: z.boolean().optional(),
});

const replacement = z.looseObject({
  type: z.string(),
  pattern: z.looseObject({ String: z.string().optional() }).optional(),
  content: z.string().optional(),
  prepend: z.string().optional(),
});

const merge = z.union([z.string(), z.tuple([z.string(), z.string()])]);

/** What every kind of tokenizer.json has. */
export const tokenizerParts = { added_tokens: z.array(addedToken).default([]) };

const tokenizerJson = z.looseObject({
  ...tokenizerParts,
  normalizer: replacement
    .extend({ normalizers: z.array(replacement).optional() })
    .nullable()
    .default(null),
  pre_tokenizer: preTokenizer
    .extend({ pretokenizers: z.array(preTokenizer).optional() })
    .nullable()
    .default(null),
  post_processor: z.looseObject({ type: z.string() }).nullable().default(null),
  decoder: z.looseObject({ type: z.string() }).nullable().default(null),
  model: z.looseObject({
    type: z.literal('BPE', { error: 'must be BPE: other tokenizers are not supported' }),
    vocab: z.record(z.string(), z.int().min(0)),
    merges: z.array(merge),
    byte_fallback: z.boolean().nullish(),
    unk_token: z.string().nullish(),
    end_of_word_suffix: z.literal('', { error: 'must be empty: not supported' }).nullish(),
    continuing_subword_prefix: z.literal('', { error: 'must be empty: not supported' }).nullish(),
  }),
});

export type TokenizerJson = z.output<typeof tokenizerJson>;
type PreTokenizerJson = z.output<typeof preTokenizer>;

const tokenName = z.union([z.string(), z.looseObject({ content: z.string() }).transform((token) => token.content)]);
/** A template, or several under names, of which `default` is the one for plain chats. */
const chatTemplate = z.union([
  z.string(),
  z
    .array(z.looseObject({ name: z.string(), template: z.string() }))
    .transform((named) => named.find(({ name }) => name === 'default')?.template),
]);
const tokenizerConfig = z.looseObject({
  bos_token: tokenName.nullish(),
  eos_token: tokenName.nullish(),
  chat_template: chatTemplate.nullish(),
});
export type TokenizerConfig = z.output<typeof tokenizerConfig>;

/**
 * @param file name for messages.
 * @throws ServingError bundle_invalid if the file is not valid JSON, not BPE of bytes, or its ids are not sound.
 */
export function readTokenizerJson(text: string, file: string): TokenizerJson {
  const json = check(tokenizerJson, text, file);
  const byId = new Map<number, string>();
  for (const [token, id] of Object.entries(json.model.vocab)) {
    const other = byId.get(id);
    if (other !== undefined) {
      throw invalid(file, `model.vocab gives id ${id} to ${JSON.stringify(other)} and ${JSON.stringify(token)}`);
    }
    byId.set(id, token);
  }
  for (const { id, content } of json.added_tokens) byId.set(id, content);
  // Every table by id is as large as the highest id, so one far beyond the number of tokens is refused.
  let highest = 0;
  for (const id of byId.keys()) highest = Math.max(highest, id);
  if (highest > 4 * byId.size + 65_536) throw invalid(file, `token id ${highest} is too high for ${byId.size} tokens`);
  for (const [symbol, byte] of json.model.byte_fallback ? [] : BYTE_OF_SYMBOL) {
    if (isOfCode(byte) && !Object.hasOwn(json.model.vocab, symbol)) {
      throw invalid(file, `model.vocab has no token for byte ${byte}`);
    }
  }
  // A token that is not in the vocabulary would vanish from texts, or have no id.
  const { vocab, merges, unk_token: unknown } = json.model;
  for (const pair of merges) {
    const merged = typeof pair === 'string' ? pair.replace(' ', '') : pair.join('');
    if (!Object.hasOwn(vocab, merged))
      throw invalid(file, `model.merges makes ${JSON.stringify(merged)}, which is not a token`);
  }
  const known = (token: string) =>
    Object.hasOwn(vocab, token) || json.added_tokens.some((each) => each.content === token);
  if (unknown != null && !known(unknown))
    throw invalid(file, `model.unk_token ${JSON.stringify(unknown)} is not a token`);
  return json;
}

/**
 * Whether code cannot do without a byte: those of ASCII texts. Other bytes may have no token, as 21 have none in
 * SmolLM2 (control characters, and bytes with which no character in use begins), and vanish from texts.
 */
const isOfCode = (byte: number) => (byte >= 0x20 && byte <= 0x7e) || [0x09, 0x0a, 0x0d].includes(byte);

/** @throws ServingError bundle_invalid */
export function readTokenizerConfig(text: string, file: string): TokenizerConfig {
  return check(tokenizerConfig, text, file);
}

/** The pre-tokenizers in order. The last one must turn text into byte symbols. */
export function preTokenizers(
  json: TokenizerJson,
  file: string,
): { splits: PreTokenizerJson[]; bytes: PreTokenizerJson } {
  const { pretokenizers, ...single } = json.pre_tokenizer ?? { type: 'nothing' };
  const all = single.type === 'Sequence' ? (pretokenizers ?? []) : [single];
  const bytes = all.at(-1);
  if (bytes?.type !== 'ByteLevel') {
    throw invalid(file, `pre_tokenizer ends with ${bytes?.type ?? 'nothing'}: it must end with ByteLevel`);
  }
  const splits = all.slice(0, -1);
  for (const { type, pattern, behavior } of splits) {
    const keepsText = type === 'Digits' || (type === 'Split' && pattern !== undefined && behavior !== 'Removed');
    if (!keepsText)
      throw invalid(
        file,
        `pre_tokenizer ${type}, behavior ${behavior} is not supported: only Digits, and a Split that keeps text`,
      );
  }
  return { splits, bytes };
}

/**
 * GPT-2's printable stand-ins for bytes: a byte that is printable in Latin-1 is that character, and the others are
 * U+0100 and the following characters, in order.
 */
export const BYTE_OF_SYMBOL: ReadonlyMap<string, number> = (() => {
  const prints = (byte: number) => (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte !== 0xad);
  const symbols = new Map<string, number>();
  let others = 0;
  for (let byte = 0; byte < 256; byte++) {
    symbols.set(String.fromCharCode(prints(byte) ? byte : 256 + others++), byte);
  }
  return symbols;
})();

/** @throws ServingError bundle_invalid if a text is not JSON of this form. */
export function check<T>(schema: z.ZodType<T>, text: string, file: string): T {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw invalid(file, `not valid JSON: ${reasonOf(cause)}`, cause);
  }
  const result = schema.safeParse(json);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  throw invalid(file, `${issue?.path.map(String).join('.') || 'the whole file'}: ${issue?.message ?? 'unreadable'}`);
}

/** The error for a file of a tokenizer that cannot be used. */
export const invalid = (file: string, why: string, cause?: unknown) =>
  new ServingError('bundle_invalid', `${file}: ${why}`, { cause });
