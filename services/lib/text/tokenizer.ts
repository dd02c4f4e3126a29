/**
 * Text ⇄ token ids, and the only importer of @huggingface/tokenizers.
 *
 * The library spends 6.7 ms on 8,000 characters of code (2,100 tokens), two thirds of it in turning each word into byte
 * symbols. Splitting into words is cheap (0.4 ms), and the ids of a word depend on the word alone, so they are kept by
 * word: 0.5 ms for the same text, with the same ids.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Tokenizer as Library } from '@huggingface/tokenizers';
import {
  BYTE_OF_SYMBOL,
  invalid,
  preTokenizers,
  readTokenizerConfig,
  readTokenizerJson,
  type TokenizerConfig,
  type TokenizerJson,
} from './tokenizer-json.ts';

type Ids = readonly number[];

/** GPT-2's words: what a ByteLevel pre-tokenizer splits by where it has `use_regex`. */
const GPT2_WORDS = {
  type: 'Split',
  pattern: {
    Regex: "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
  },
  behavior: 'Isolated',
  invert: false,
};

/** Names of the token that ends a text, where tokenizer_config.json does not say. */
const EOS_NAMES = ['<|endoftext|>', '<|end_of_text|>', '</s>', '<｜end▁of▁sentence｜>'];

export class Tokenizer {
  /** Highest id + 1. */
  readonly vocabSize: number;
  /** What the tokenizer puts before every text (a beginning-of-text id); mostly nothing. */
  readonly leadingIds: Ids;
  /** The id that ends a text; undefined where the tokenizer has none. */
  readonly eosId: number | undefined;
  /** Bytes of the longest token, which bounds how many characters n tokens can cover. */
  readonly longestToken: number;
  readonly #library: Library;
  /** Splits text into words; null where a text is one word. */
  readonly #words: Library['pre_tokenizer'];
  /** Turns a word into byte symbols. */
  readonly #symbols: NonNullable<Library['pre_tokenizer']>;
  readonly #cache = new WordCache();
  readonly #addedIds: ReadonlyMap<string, number>;
  readonly #specialIds: ReadonlySet<number>;
  /** Finds added tokens in a text; undefined where their options need the library's own, slower search. */
  readonly #addedPattern: RegExp | undefined;
  readonly #bytes: (Uint8Array | undefined)[];

  /** @throws ServingError bundle_invalid */
  constructor(json: TokenizerJson, config: TokenizerConfig = {}, file = 'tokenizer.json') {
    const { splits, bytes } = preTokenizers(json, file);
    const byRegex = bytes.use_regex !== false && bytes.add_prefix_space !== true;
    try {
      this.#library = new Library(json, config);
      const stage = (pre_tokenizer: object) =>
        new Library({ ...json, added_tokens: [], model: { type: 'BPE', vocab: {}, merges: [] }, pre_tokenizer }, {})
          .pre_tokenizer;
      const words = byRegex ? [...splits, GPT2_WORDS] : splits;
      this.#words = words.length === 0 ? null : stage({ type: 'Sequence', pretokenizers: words });
      this.#symbols = stage(byRegex ? { ...bytes, use_regex: false } : bytes)!;
      this.leadingIds = this.#findLeadingIds();
    } catch (cause) {
      throw invalid(file, cause instanceof Error ? cause.message : String(cause), cause);
    }
    this.#addedIds = new Map(json.added_tokens.map((token) => [token.content, token.id]));
    this.#specialIds = new Set(json.added_tokens.filter((token) => token.special).map((token) => token.id));
    this.#addedPattern = addedPattern(json);
    this.#bytes = tokenBytes(json);
    this.vocabSize = this.#bytes.length;
    this.longestToken = this.#bytes.reduce((longest, token) => Math.max(longest, token?.length ?? 0), 1);
    const eosNames = config.eos_token ? [config.eos_token, ...EOS_NAMES] : EOS_NAMES;
    this.eosId = eosNames.map((name) => this.idOf(name)).find((id) => id !== undefined);
  }

  /** Ids of plain text: the name of a special token in it is just characters. */
  encode(text: string): number[] {
    const ids: number[] = [];
    for (const word of this.#split(this.#normalize(text))) append(ids, this.#idsOf(word));
    return ids;
  }

  /** Ids of a text in which the names of added tokens stand for those tokens, as clients write FIM prompts themselves. */
  encodeWithSpecials(text: string): number[] {
    if (this.#addedPattern === undefined) return this.#library.encode(text, { add_special_tokens: false }).ids;
    const ids: number[] = [];
    let start = 0;
    for (const match of text.matchAll(this.#addedPattern)) {
      append(ids, this.encode(text.slice(start, match.index)));
      ids.push(this.#addedIds.get(match[0])!);
      start = match.index + match[0].length;
    }
    append(ids, this.encode(text.slice(start)));
    return ids;
  }

  /** The first `count` ids of `encode(text)`, or all where there are fewer; costs no more than those. */
  encodeHead(text: string, count: number): number[] {
    const ids: number[] = [];
    for (const word of this.#split(head(this.#normalize(text), (count + 1) * this.longestToken))) {
      if (ids.length >= count) break;
      append(ids, this.#idsOf(word));
    }
    return ids.slice(0, count);
  }

  /** The last `count` ids of `encode(text)`, or all where there are fewer; costs no more than those. */
  encodeTail(text: string, count: number): number[] {
    const words = this.#split(tail(this.#normalize(text), (count + 1) * this.longestToken));
    const ids: number[] = [];
    for (let i = words.length - 1; i >= 0 && ids.length < count; i--) append(ids, this.#idsOf(words[i]!).toReversed());
    return ids.slice(0, count).reverse();
  }

  /** Whether `text` surely has more than `count` tokens, by its length alone. */
  surelyLonger(text: string, count: number): boolean {
    return text.length > count * this.longestToken;
  }

  /** Id of an added token (special or not) by its name. */
  idOf(name: string): number | undefined {
    return this.#addedIds.get(name);
  }

  /** Whether the token steers the model and is no text. */
  isSpecial(id: number): boolean {
    return this.#specialIds.has(id);
  }

  /** The bytes that a token stands for; none for an id without a token (padded embedding tables have such rows). */
  bytes(id: number): Uint8Array {
    return this.#bytes[id] ?? NO_BYTES;
  }

  /** The text of `ids`, names of special tokens included. */
  decode(ids: Iterable<number>): string {
    return Buffer.concat(Array.from(ids, (id) => this.bytes(id))).toString('utf8');
  }

  #normalize(text: string): string {
    return this.#library.normalizer?.normalize(text) ?? text;
  }

  #split(text: string): string[] {
    if (text === '') return [];
    return this.#words?.pre_tokenize(text) ?? [text];
  }

  #idsOf(word: string): Ids {
    const known = this.#cache.get(word);
    if (known !== undefined) return known;
    const model = this.#library.model!;
    const ids = model.encode(this.#symbols.pre_tokenize(word)).map((token: string) => model.tokens_to_ids.get(token)!);
    this.#cache.put(word, ids);
    return ids;
  }

  /** What `add_special_tokens` puts before a text. */
  #findLeadingIds(): Ids {
    const plain = this.#library.encode('a', { add_special_tokens: false }).ids;
    const whole = this.#library.encode('a', { add_special_tokens: true }).ids;
    return whole.slice(0, whole.indexOf(plain[0]!));
  }
}

/**
 * @param dir folder with tokenizer.json and, mostly, tokenizer_config.json.
 * @throws ServingError bundle_invalid, naming the file.
 */
export async function loadTokenizer(dir: string): Promise<Tokenizer> {
  const file = join(dir, 'tokenizer.json');
  const text = await readFile(file, 'utf8').catch((cause) => {
    throw invalid(file, `cannot be read (${cause.code})`, cause);
  });
  const configFile = join(dir, 'tokenizer_config.json');
  const configText = await readFile(configFile, 'utf8').catch((cause) => {
    if (cause.code === 'ENOENT') return '{}';
    throw invalid(configFile, `cannot be read (${cause.code})`, cause);
  });
  return new Tokenizer(readTokenizerJson(text, file), readTokenizerConfig(configText, configFile), file);
}

/** Ids by word, in two generations: what was not used while one generation filled is forgotten. */
class WordCache {
  static readonly #WORDS = 32_768;
  /** Longer ones are rarely met twice. */
  static readonly #LENGTH = 64;
  #young = new Map<string, Ids>();
  #old = new Map<string, Ids>();

  get(word: string): Ids | undefined {
    const ids = this.#young.get(word);
    if (ids !== undefined) return ids;
    const old = this.#old.get(word);
    if (old !== undefined) this.put(word, old);
    return old;
  }

  put(word: string, ids: Ids): void {
    if (word.length > WordCache.#LENGTH) return;
    if (this.#young.size >= WordCache.#WORDS) {
      this.#old = this.#young;
      this.#young = new Map();
    }
    // A copy: a slice would keep the whole text that it was cut from in memory.
    this.#young.set(Buffer.from(word, 'utf16le').toString('utf16le'), ids);
  }
}

/** `push(...more)` overflows the stack on long texts. */
function append(ids: number[], more: Ids): void {
  for (const id of more) ids.push(id);
}

const NO_BYTES = new Uint8Array(0);

/** Bytes by id: an ordinary token's symbols are bytes, an added token's content is text. */
function tokenBytes(json: TokenizerJson): (Uint8Array | undefined)[] {
  const bytes: (Uint8Array | undefined)[] = [];
  for (const [token, id] of Object.entries(json.model.vocab)) {
    bytes[id] = Uint8Array.from(token, (symbol) => BYTE_OF_SYMBOL.get(symbol) ?? 0x3f);
  }
  for (const { id, content } of json.added_tokens) bytes[id] = Buffer.from(content, 'utf8');
  return bytes;
}

function addedPattern(json: TokenizerJson): RegExp | undefined {
  const intricate = json.added_tokens.some(
    (token) => token.lstrip || token.rstrip || token.single_word || (json.normalizer !== null && token.normalized),
  );
  if (intricate) return undefined;
  // The longest of those that match at a place wins, as in the library.
  const names = json.added_tokens.map((token) => token.content).sort((a, b) => b.length - a.length);
  if (names.length === 0) return /(?!)/g;
  return new RegExp(names.map((name) => name.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('|'), 'g');
}

/**
 * At least the first `length` characters, up to a line's end. A line that begins with a non-blank begins a word in every
 * pre-tokenizer of the supported families, so the words before the cut are those of the whole text.
 */
function head(text: string, length: number): string {
  if (text.length <= length) return text;
  LINE_START.lastIndex = length;
  const next = LINE_START.exec(text);
  return next === null ? text : text.slice(0, next.index + 1);
}

/** At least the last `length` characters, from a line's start. */
function tail(text: string, length: number): string {
  for (let end = text.length - length; end > 0; ) {
    const newline = text.lastIndexOf('\n', end - 1);
    if (newline < 0) break;
    if (/\S/.test(text[newline + 1] ?? '')) return text.slice(newline + 1);
    end = newline;
  }
  return text;
}

const LINE_START = /\n\S/g;
