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
import { WordCache } from './word-cache.ts';

type Ids = readonly number[];

/**
 * What the name of an added token is in a text: just characters (a user's file that happens to hold one), or the token
 * (clients that write FIM prompts themselves).
 */
export type Names = 'as text' | 'as tokens';

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
  /** What the tokenizer puts after every text; mostly nothing. */
  readonly trailingIds: Ids;
  /** The id that ends a text; undefined where the tokenizer has none. */
  readonly eosId: number | undefined;
  readonly #library: Library;
  /** Splits text into words; null where a block of text is one word. */
  readonly #splitter: Library['pre_tokenizer'];
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
      this.#splitter = words.length === 0 ? null : stage({ type: 'Sequence', pretokenizers: words });
      this.#symbols = stage(byRegex ? { ...bytes, use_regex: false } : bytes)!;
      const { leading, trailing } = this.#template();
      this.leadingIds = leading;
      this.trailingIds = trailing;
    } catch (cause) {
      throw invalid(file, cause instanceof Error ? cause.message : String(cause), cause);
    }
    this.#addedIds = new Map(json.added_tokens.map((token) => [token.content, token.id]));
    this.#specialIds = new Set(json.added_tokens.filter((token) => token.special).map((token) => token.id));
    this.#addedPattern = addedPattern(json);
    this.#bytes = tokenBytes(json);
    this.vocabSize = this.#bytes.length;
    const eosNames = config.eos_token ? [config.eos_token, ...EOS_NAMES] : EOS_NAMES;
    this.eosId = eosNames.map((name) => this.idOf(name)).find((id) => id !== undefined);
  }

  /** All ids of a text. */
  encode(text: string, names: Names = 'as text'): number[] {
    return this.encodeHead(text, Number.POSITIVE_INFINITY, names);
  }

  /** The first `count` ids of a text, or all where there are fewer; costs no more than those. */
  encodeHead(text: string, count: number, names: Names = 'as text'): number[] {
    const ids: number[] = [];
    if (count <= 0) return ids;
    for (const section of this.#sections(text, names)) {
      for (const part of typeof section === 'number' ? [[section]] : this.#idsByWord(section)) {
        if (append(ids, part) >= count) return ids.slice(0, count);
      }
    }
    return ids;
  }

  /** The last `count` ids of a text, or all where there are fewer; costs no more than those. */
  encodeTail(text: string, count: number, names: Names = 'as text'): number[] {
    const reversed: number[] = [];
    if (count <= 0) return reversed;
    for (const section of this.#sections(text, names).reverse()) {
      for (const part of typeof section === 'number' ? [[section]] : this.#idsByWordBackwards(section)) {
        if (append(reversed, part.toReversed()) >= count) return reversed.slice(0, count).reverse();
      }
    }
    return reversed.reverse();
  }

  /** Id of an added token (special or not) by its name. */
  idOf(name: string): number | undefined {
    return this.#addedIds.get(name);
  }

  /** Id of a token of the model's own vocabulary by its exact spelling, such as UniXcoder's names of syntax nodes. */
  vocabularyId(token: string): number | undefined {
    return this.#library.model!.tokens_to_ids.get(token);
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

  /** A text as stretches of plain text and ids of added tokens. */
  #sections(text: string, names: Names): (string | number)[] {
    if (names === 'as text') return [text];
    if (this.#addedPattern === undefined) return this.#library.encode(text, { add_special_tokens: false }).ids;
    const sections: (string | number)[] = [];
    let start = 0;
    for (const match of text.matchAll(this.#addedPattern)) {
      sections.push(text.slice(start, match.index), this.#addedIds.get(match[0])!);
      start = match.index + match[0].length;
    }
    sections.push(text.slice(start));
    return sections;
  }

  *#idsByWord(text: string): Generator<Ids> {
    const normal = this.#library.normalizer?.normalize(text) ?? text;
    for (let start = 0; start < normal.length; ) {
      const end = blockEnd(normal, start);
      for (const word of this.#words(normal, start, end)) yield this.#idsOf(word);
      start = end;
    }
  }

  *#idsByWordBackwards(text: string): Generator<Ids> {
    const normal = this.#library.normalizer?.normalize(text) ?? text;
    for (let end = normal.length; end > 0; ) {
      const start = blockStart(normal, end);
      for (const word of this.#words(normal, start, end).reverse()) yield this.#idsOf(word);
      end = start;
    }
  }

  /** The words of a block. The patterns look one character ahead, so the block is split with that one. */
  #words(text: string, start: number, end: number): string[] {
    const words = this.#splitter?.pre_tokenize(text.slice(start, end + 1)) ?? [text.slice(start, end)];
    const last = this.#splitter !== null && end < text.length ? words.pop()! : '';
    if (last.length > 1) words.push(last.slice(0, -1)); // a block that ends within a word
    return words.flatMap(parts);
  }

  #idsOf(word: string): Ids {
    const known = this.#cache.get(word);
    if (known !== undefined) return known;
    const model = this.#library.model!;
    const symbols = this.#symbols.pre_tokenize(word);
    const ids = model.encode(symbols).map((token: string) => model.tokens_to_ids.get(token)!);
    this.#cache.put(word, ids);
    return ids;
  }

  /** What `add_special_tokens` puts around a text. */
  #template(): { leading: Ids; trailing: Ids } {
    const plain = this.#library.encode('a', { add_special_tokens: false }).ids;
    const whole = this.#library.encode('a', { add_special_tokens: true }).ids;
    const start = whole.indexOf(plain[0]!);
    return { leading: whole.slice(0, start), trailing: whole.slice(start + plain.length) };
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

/** Appends, and returns the new length. (`push(...more)` overflows the stack on long words.) */
function append(ids: number[], more: Ids): number {
  for (const id of more) ids.push(id);
  return ids.length;
}

const NO_BYTES = new Uint8Array(0);

/** Bytes by id: an ordinary token's symbols are bytes, an added token's content is text. */
function tokenBytes(json: TokenizerJson): (Uint8Array | undefined)[] {
  const bytes: (Uint8Array | undefined)[] = [];
  for (const [token, id] of Object.entries(json.model.vocab)) {
    const known = Array.from(token, (symbol) => BYTE_OF_SYMBOL.get(symbol));
    bytes[id] = known.includes(undefined) ? Buffer.from(token, 'utf8') : Uint8Array.from(known as number[]);
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
 * Where the block that begins at `start` ends: a text is split block by block, so that the first or last tokens of a
 * large file cost no more than they must. A letter at a line's start begins a word in the pre-tokenizers of GPT-2,
 * StarCoder, Llama 3, Qwen and DeepSeek, and so does a space between what is no space and a letter; none of them looks
 * back, so the words are those of the whole text. What has neither for long is no code, and is cut anywhere.
 */
function blockEnd(text: string, start: number): number {
  const within = text.slice(start + BLOCK, start + LONGEST_BLOCK);
  const at = [LINE_START, WORD_START].map((pattern) => within.search(pattern)).find((index) => index >= 0);
  if (at !== undefined) return start + BLOCK + at;
  return text.length - start <= LONGEST_BLOCK ? text.length : between(text, start + LONGEST_BLOCK);
}

/** Where the block that ends at `end` begins. */
function blockStart(text: string, end: number): number {
  if (end <= BLOCK) return 0;
  const from = Math.max(0, end - LONGEST_BLOCK);
  const within = text.slice(from, end - BLOCK + 3); // a letter may be two code units
  for (const pattern of [LINE_START, WORD_START]) {
    const last = [...within.matchAll(new RegExp(pattern, 'gu'))].at(-1);
    if (last !== undefined) return from + last.index;
  }
  return from === 0 ? 0 : between(text, from);
}

/** `at`, or one before where that is within a character. */
const between = (text: string, at: number) => (/^[\udc00-\udfff]/.test(text.slice(at, at + 1)) ? at - 1 : at);

const LINE_START = /(?<=\n)\p{L}/u;
const WORD_START = /(?<=\S) (?=\p{L})/u;
/** Characters of a block, at least. */
const BLOCK = 2048;
/** And at most: 4 MiB without a line break took 1.2 s as one block. */
const LONGEST_BLOCK = 16_384;

/** UTF-16 units. */
const LONGEST_WORD = 128;
const PARTS = new RegExp(`.{1,${LONGEST_WORD}}`, 'gsu');

/**
 * A word in parts of 128 characters. Words are mostly a few letters; one of a million would hold up the process for
 * seconds (3.4 s measured), and a merge lost where two parts meet is of no consequence in what is no code.
 */
function parts(word: string): string[] {
  return word.length <= LONGEST_WORD ? [word] : word.match(PARTS)!;
}
