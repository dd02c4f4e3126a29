/**
 * Converts text to token ids and back. This file is the only importer of @huggingface/tokenizers.
 *
 * The library takes 6.7 ms for 8,000 characters of code (2,100 tokens), two thirds of it to turn each word into byte
 * symbols. Splitting into words is cheap (0.4 ms), and the ids of a word depend on the word alone, so they are cached
 * by word: 0.5 ms for the same text, with the same ids.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Tokenizer as Library } from '@huggingface/tokenizers';
import { atOnce } from '../async/turns.ts';
import { ServingError } from '../process/errors.ts';
import { AddedTokenSearch, type Section } from './added-tokens.ts';
import { Normalizer } from './normalizer.ts';
import { pieceBytes, pieceSymbols, pieceWords, type SentencePiece, sentencePieceOf } from './sentence-piece.ts';
import {
  BYTE_OF_SYMBOL,
  invalid,
  preTokenizers,
  readTokenizerConfig,
  readTokenizerJson,
  type TokenizerConfig,
  type TokenizerJson,
} from './tokenizer-json.ts';
import { blockEnd, blockStart, wordParts } from './word-blocks.ts';
import { WordCache } from './word-cache.ts';

type Ids = readonly number[];
type AddedTokenJson = TokenizerJson['added_tokens'][number];

/** Text without added tokens, and whether it is in normal form already. */
interface Stretch {
  readonly text: string;
  readonly normal: boolean;
}

/** Text that is split block by block, and what is done to a block before. */
interface Blocks {
  readonly text: string;
  readonly normalize: (block: string) => string;
}

/**
 * How the name of an added token in a text is read: as plain characters (a user's file that happens to hold one), or as
 * the token (clients that write FIM prompts themselves).
 */
export type Names = 'as text' | 'as tokens';

/**
 * Where a text stands: SentencePiece's tokenizers put a space before one that begins, and before none that goes on
 * within another one, such as the text after the cursor.
 */
export type Place = 'at start' | 'within';

/** GPT-2's words, by which a ByteLevel pre-tokenizer with `use_regex` splits. */
const GPT2_WORDS = {
  type: 'Split',
  pattern: {
    Regex: "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
  },
  behavior: 'Isolated',
  invert: false,
};

/** Names of the token that ends a text, in case tokenizer_config.json does not name it. */
const EOS_NAMES = ['<|endoftext|>', '<|end_of_text|>', '</s>', '<｜end▁of▁sentence｜>', '<[end▁of▁sentence]>'];

/** What a model's configuration says of chats. */
export interface ChatForm {
  /** A template in Jinja, as Hugging Face's; undefined where the model has none. */
  readonly template: string | undefined;
  /** Names of the tokens that a template may put at its beginning and its ends; '' where there is none. */
  readonly bosToken: string;
  readonly eosToken: string;
}

export class Tokenizer {
  readonly chat: ChatForm;
  /** The highest id + 1. */
  readonly vocabSize: number;
  /** Ids that the tokenizer puts before every text, such as a beginning of text; mostly none. */
  readonly leadingIds: Ids;
  /** Ids that the tokenizer puts after every text; mostly none. */
  readonly trailingIds: Ids;
  /** The id that ends a text; undefined if the tokenizer has none. */
  readonly eosId: number | undefined;
  readonly #library: Library;
  /** Splits text into words; null if a whole block of text is one word. */
  readonly #splitter: ((text: string) => string[]) | null;
  /** Turns a word into the symbols that the model merges. */
  readonly #symbols: (word: string) => string[];
  readonly #cache = new WordCache();
  readonly #addedIds: ReadonlyMap<string, number>;
  readonly #specialIds: ReadonlySet<number>;
  /** Finds added tokens in plain text, and then those that stand in normalised text. */
  readonly #added: AddedTokenSearch;
  readonly #addedNormalized: AddedTokenSearch;
  readonly #normalizer: Normalizer;
  /** Which texts are given a space before them. */
  readonly #prefixSpace: 'none' | 'those without' | 'those that begin';
  readonly #bytes: (Uint8Array | undefined)[];

  /** @throws ServingError bundle_invalid */
  constructor(json: TokenizerJson, config: TokenizerConfig = {}, file = 'tokenizer.json') {
    const piece = sentencePieceOf(json, file);
    try {
      this.#library = new Library(json, config);
      // The library's own cache is bounded in words alone: 10,000 long ones take 100 MiB. Ours is in front of it.
      Object.assign(this.#library.model!, { max_length_to_cache: 0 });
      const stages = piece ? stagesOfPieces(piece) : stagesOfBytes(json, file);
      this.#splitter = stages.splitter;
      this.#symbols = stages.symbols;
      this.#prefixSpace = stages.prefixSpace;
      const { leading, trailing } = this.#template();
      this.leadingIds = leading;
      this.trailingIds = trailing;
    } catch (cause) {
      if (cause instanceof ServingError) throw cause;
      throw invalid(file, cause instanceof Error ? cause.message : String(cause), cause);
    }
    this.#addedIds = new Map(json.added_tokens.map((token) => [token.content, token.id]));
    this.#specialIds = new Set(json.added_tokens.filter((token) => token.special).map((token) => token.id));
    // Of SentencePiece's, spaces are all that is normalised, where words become symbols.
    const normalizer = piece ? null : this.#library.normalizer;
    this.#normalizer = new Normalizer(piece ? null : json.normalizer, (text) => normalizer?.normalize(text) ?? text);
    const inNormal = (token: AddedTokenJson) => normalizer !== null && (token.normalized ?? !token.special);
    const named = json.added_tokens.map((token) => [token.content, token] as const);
    this.#added = new AddedTokenSearch(named.filter(([, token]) => !inNormal(token)));
    this.#addedNormalized = new AddedTokenSearch(
      named
        .filter(([, token]) => inNormal(token))
        .map(([name, token]) => [this.#normalizer.normalize(name), token] as const),
    );
    this.#bytes = tokenBytes(json, piece ? pieceBytes : bytesOfSymbols);
    this.vocabSize = this.#bytes.length;
    const eosNames = config.eos_token ? [config.eos_token, ...EOS_NAMES] : EOS_NAMES;
    this.chat = {
      template: config.chat_template ?? undefined,
      bosToken: config.bos_token ?? '',
      eosToken: config.eos_token ?? '',
    };
    this.eosId = eosNames.map((name) => this.idOf(name)).find((id) => id !== undefined);
  }

  /** All ids of a text. */
  encode(text: string, names: Names = 'as text', place: Place = 'at start'): number[] {
    return atOnce(this.headSteps(text, Number.POSITIVE_INFINITY, names, place));
  }

  /** The first `count` ids of a text, or all if there are fewer. The rest of the text costs nothing. */
  encodeHead(text: string, count: number, names: Names = 'as text'): number[] {
    return atOnce(this.headSteps(text, count, names));
  }

  /** The last `count` ids of a text, or all if there are fewer. The rest of the text costs nothing. */
  encodeTail(text: string, count: number, names: Names = 'as text'): number[] {
    return atOnce(this.tailSteps(text, count, names));
  }

  /** Does the work of {@link encodeHead} in steps, word by word. */
  *headSteps(
    text: string,
    count: number,
    names: Names = 'as text',
    place: Place = 'at start',
  ): Generator<void, number[]> {
    const ids: number[] = [];
    if (count <= 0) return ids;
    for (const section of this.#sections(text, names)) {
      if (section === undefined) yield;
      else {
        for (const part of typeof section === 'number' ? [[section]] : this.#idsByWord(section, place)) {
          if (append(ids, part) >= count) return ids.slice(0, count);
          yield;
        }
      }
    }
    return ids;
  }

  /** Does the work of {@link encodeTail} in steps, word by word. */
  *tailSteps(text: string, count: number, names: Names = 'as text'): Generator<void, number[]> {
    const reversed: number[] = [];
    if (count <= 0) return reversed;
    const sections = new LastSections(count);
    for (const section of this.#sections(text, names)) {
      if (section !== undefined) sections.add(section);
      yield;
    }
    for (const section of sections.backwards()) {
      for (const part of typeof section === 'number' ? [[section]] : this.#idsByWordBackwards(section)) {
        if (append(reversed, part.toReversed()) >= count) return reversed.slice(0, count).reverse();
        yield;
      }
    }
    return reversed.reverse();
  }

  /**
   * The added tokens whose names stand in a text, in order, with their places in it. Yields undefined between two steps
   * of a long search.
   */
  *addedTokens(text: string): Generator<Required<Section> | undefined, void> {
    for (const section of this.#added.sections(text)) {
      if (section === undefined) yield undefined;
      else if (section.id !== undefined) yield { ...section, id: section.id };
    }
  }

  /** The id of an added token (special or not) by its name. */
  idOf(name: string): number | undefined {
    return this.#addedIds.get(name);
  }

  /**
   * The id of a token in the model's own vocabulary by its exact spelling, such as UniXcoder's names of syntax nodes.
   */
  vocabularyId(token: string): number | undefined {
    return this.#library.model!.tokens_to_ids.get(token);
  }

  /** Whether the token steers the model and is not text. */
  isSpecial(id: number): boolean {
    return this.#specialIds.has(id);
  }

  /** The bytes that a token stands for; none for an id without a token, as in padded embedding tables. */
  bytes(id: number): Uint8Array {
    return this.#bytes[id] ?? NO_BYTES;
  }

  /** The text of `ids`, including the names of special tokens. */
  decode(ids: Iterable<number>): string {
    return this.#bytesOf(ids).toString('utf8');
  }

  /** Does the work of {@link decode} in steps. */
  *decodeSteps(ids: Int32Array): Generator<void, string> {
    const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
    let text = '';
    for (let start = 0; start < ids.length; start += IDS_PER_STEP) {
      text += decoder.decode(this.#bytesOf(ids.subarray(start, start + IDS_PER_STEP)), { stream: true });
      yield;
    }
    return text + decoder.decode();
  }

  #bytesOf(ids: Iterable<number>): Buffer {
    return Buffer.concat(Array.from(ids, (id) => this.bytes(id)));
  }

  /**
   * Splits a text into stretches of plain text and ids of added tokens. Yields undefined between two steps of a long
   * search.
   */
  *#sections(text: string, names: Names): Generator<Stretch | number | undefined, void> {
    if (names === 'as text') {
      yield { text, normal: false };
      return;
    }
    for (const section of this.#added.sections(text)) {
      if (section === undefined) yield undefined;
      else if (section.id !== undefined) yield section.id;
      else yield* this.#normalSections(text.slice(section.start, section.end));
    }
  }

  /** Splits plain text further, by the added tokens that stand in normalised text. */
  *#normalSections(text: string): Generator<Stretch | number | undefined, void> {
    if (this.#addedNormalized.isEmpty && this.#normalizer.bySlice) {
      yield { text, normal: false };
      return;
    }
    const normal = yield* this.#normalizer.steps(text);
    for (const section of this.#addedNormalized.sections(normal)) {
      if (section === undefined) yield undefined;
      else yield section.id ?? { text: normal.slice(section.start, section.end), normal: true };
    }
  }

  *#idsByWord(stretch: Stretch, place: Place): Generator<Ids> {
    const blocks = this.#asBlocks(stretch, place);
    const { text } = blocks;
    for (let start = 0; start < text.length; ) {
      const end = blockEnd(text, start);
      for (const word of this.#words(blocks, start, end)) yield this.#idsOf(word);
      start = end;
    }
  }

  *#idsByWordBackwards(stretch: Stretch): Generator<Ids> {
    const blocks = this.#asBlocks(stretch, 'at start');
    const { text } = blocks;
    for (let end = text.length; end > 0; ) {
      const start = blockStart(text, end);
      for (const word of this.#words(blocks, start, end).reverse()) yield this.#idsOf(word);
      end = start;
    }
  }

  /** A stretch as it is cut into blocks, and what each block still needs to be in normal form. */
  #asBlocks({ text, normal }: Stretch, place: Place): Blocks {
    const bySlice = !normal && this.#normalizer.bySlice;
    const begun = normal || bySlice ? text : this.#normalizer.normalize(text);
    const lacksSpace = this.#prefixSpace === 'those without' && !begun.startsWith(' ');
    const getsSpace = lacksSpace || (this.#prefixSpace === 'those that begin' && place === 'at start');
    return {
      text: getsSpace && begun !== '' ? ` ${begun}` : begun,
      normalize: bySlice ? (block) => this.#normalizer.normalize(block) : (block) => block,
    };
  }

  /** The words of a block. The patterns look one character ahead, so the block is split together with the next one. */
  #words({ text, normalize }: Blocks, start: number, end: number): string[] {
    const block = normalize(text.slice(start, end));
    const words = this.#splitter?.(block + text.slice(end, end + 1)) ?? [block];
    const last = this.#splitter !== null && end < text.length ? words.pop()! : '';
    if (last.length > 1) words.push(last.slice(0, -1)); // the block ends within a word
    return words.flatMap(wordParts);
  }

  #idsOf(word: string): Ids {
    const known = this.#cache.get(word);
    if (known !== undefined) return known;
    const model = this.#library.model!;
    const symbols = this.#symbols(word);
    const ids = model.encode(symbols).map((token: string) => model.tokens_to_ids.get(token)!);
    this.#cache.put(word, ids);
    return ids;
  }

  /** The ids that `add_special_tokens` puts around a text. */
  #template(): { leading: Ids; trailing: Ids } {
    const plain = this.#library.encode('a', { add_special_tokens: false }).ids;
    const whole = this.#library.encode('a', { add_special_tokens: true }).ids;
    const start = whole.indexOf(plain[0]!);
    return { leading: whole.slice(0, start), trailing: whole.slice(start + plain.length) };
  }
}

/**
 * @param dir folder with tokenizer.json and mostly also tokenizer_config.json.
 * @throws ServingError bundle_invalid, which names the file.
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

/** Appends ids and returns the new length. (`push(...more)` would overflow the stack on long words.) */
function append(ids: number[], more: Ids): number {
  for (const id of more) ids.push(id);
  return ids.length;
}

/** The last sections of a text, as many as its last `count` ids can lie in: each section is at least one id. */
class LastSections {
  readonly #count: number;
  #sections: (Stretch | number)[] = [];

  constructor(count: number) {
    this.#count = count;
  }

  add(section: Stretch | number): void {
    this.#sections.push(section);
    if (this.#sections.length > 2 * this.#count) this.#sections = this.#sections.slice(-this.#count);
  }

  backwards(): (Stretch | number)[] {
    return this.#sections.reverse();
  }
}

/** Ids that are decoded between two steps: about 0.2 ms. */
const IDS_PER_STEP = 1_024;

const NO_BYTES = new Uint8Array(0);

/** How a tokenizer divides texts into words, and words into symbols. */
interface Stages {
  readonly splitter: ((text: string) => string[]) | null;
  readonly symbols: (word: string) => string[];
  readonly prefixSpace: 'none' | 'those without' | 'those that begin';
}

const stagesOfPieces = ({ prefixSpace }: SentencePiece): Stages => ({
  splitter: pieceWords,
  symbols: pieceSymbols,
  prefixSpace: prefixSpace ? 'those that begin' : 'none',
});

/** @throws ServingError bundle_invalid; whatever the library throws. */
function stagesOfBytes(json: TokenizerJson, file: string): Stages {
  const { splits, bytes } = preTokenizers(json, file);
  // A ByteLevel alone puts its space before a text; behind other pre-tokenizers, before each of their words.
  const prefixSpace = bytes.add_prefix_space === true && splits.length === 0;
  const byRegex = bytes.use_regex !== false && (bytes.add_prefix_space !== true || prefixSpace);
  const stage = (pre_tokenizer: object) => {
    const bare = { ...json, added_tokens: [], model: { type: 'BPE', vocab: {}, merges: [] }, pre_tokenizer };
    const made = new Library(bare, {}).pre_tokenizer!;
    return (text: string) => made.pre_tokenize(text);
  };
  const words = byRegex ? [...splits, GPT2_WORDS] : splits;
  const ofWords = prefixSpace ? { ...bytes, add_prefix_space: false } : bytes;
  return {
    splitter: words.length === 0 ? null : stage({ type: 'Sequence', pretokenizers: words }),
    symbols: stage(byRegex ? { ...ofWords, use_regex: false } : ofWords),
    prefixSpace: prefixSpace ? 'those without' : 'none',
  };
}

/**
 * The bytes of every token, by id.
 * @param bytesOf those of an ordinary token. What an added token says is text, in SentencePiece's spelling with that.
 */
function tokenBytes(json: TokenizerJson, bytesOf: (token: string) => Uint8Array): (Uint8Array | undefined)[] {
  const bytes: (Uint8Array | undefined)[] = [];
  for (const [token, id] of Object.entries(json.model.vocab)) bytes[id] = bytesOf(token);
  const isPiece = bytesOf === pieceBytes;
  for (const { id, content } of json.added_tokens) {
    bytes[id] = isPiece ? pieceBytes(content) : Buffer.from(content, 'utf8');
  }
  return bytes;
}

/** The symbols of an ordinary token of byte-level BPE are bytes. */
function bytesOfSymbols(token: string): Uint8Array {
  const known = Array.from(token, (symbol) => BYTE_OF_SYMBOL.get(symbol));
  return known.includes(undefined) ? Buffer.from(token, 'utf8') : Uint8Array.from(known as number[]);
}
