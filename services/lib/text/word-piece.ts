/**
 * BERT's tokenizer: text is cleaned, mostly in lower case and without accents; words end at white space, signs are
 * words of their own; each word becomes the longest pieces of the vocabulary, from its beginning on. It gives ids
 * alone: the text cannot be made from them again.
 *
 * A name such as `[CLS]` in a text is read as plain text, because a chunk may hold it.
 */
import { z } from 'zod';
import { check, invalid, tokenizerParts } from './tokenizer-json.ts';
import { withoutHalf } from './word-blocks.ts';

const wordPieceJson = z.looseObject({
  added_tokens: tokenizerParts.added_tokens,
  normalizer: z.looseObject({
    type: z.literal('BertNormalizer', { error: 'must be BertNormalizer: others are not supported' }),
    clean_text: z.boolean().default(true),
    handle_chinese_chars: z.boolean().default(true),
    strip_accents: z.boolean().nullable().default(null),
    lowercase: z.boolean().default(true),
  }),
  pre_tokenizer: z.looseObject({
    type: z.literal('BertPreTokenizer', { error: 'must be BertPreTokenizer: others are not supported' }),
  }),
  post_processor: z
    .discriminatedUnion('type', [
      z.looseObject({ type: z.literal('TemplateProcessing'), single: z.array(z.looseObject({})) }),
      z.looseObject({
        type: z.literal('BertProcessing'),
        sep: z.tuple([z.string(), z.int()]),
        cls: z.tuple([z.string(), z.int()]),
      }),
    ])
    .nullable()
    .default(null),
  model: z.looseObject({
    type: z.literal('WordPiece'),
    vocab: z.record(z.string(), z.int().min(0)),
    unk_token: z.string().default('[UNK]'),
    continuing_subword_prefix: z.string().default('##'),
    max_input_chars_per_word: z.int().positive().default(100),
  }),
});
export type WordPieceJson = z.output<typeof wordPieceJson>;

const kindOfModel = z.looseObject({ model: z.looseObject({ type: z.string() }) });

/**
 * @param file name for messages.
 * @returns undefined for a tokenizer with another model.
 * @throws ServingError bundle_invalid if the file is not valid JSON, or a part of it is not BERT's.
 */
export function readWordPieceJson(text: string, file: string): WordPieceJson | undefined {
  if (check(kindOfModel, text, file).model.type !== 'WordPiece') return undefined;
  const json = check(wordPieceJson, text, file);
  const { vocab, unk_token } = json.model;
  if (!Object.hasOwn(vocab, unk_token)) {
    throw invalid(file, `model.unk_token ${JSON.stringify(unk_token)} is not a token`);
  }
  for (const name of specialNames(json)) {
    if (idOf(json, name) === undefined) throw invalid(file, `post_processor names ${name}, which is not a token`);
  }
  return json;
}

/** UTF-16 units of a text that are normalised at once, and the most where there is no white space. */
const SLICE = 1_024;
const LONGEST_SLICE = 4_096;

/** What the tokenizers library calls control characters: categories C, but for those of white space. */
const CONTROL = /[\p{Cc}\p{Cf}\p{Cn}\p{Co}\ufffd]/gu;
const CHINESE =
  /[\u4e00-\u9fff\u3400-\u4dbf\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\uf900-\ufaff\u{2f800}-\u{2fa1f}]/gu;
const ACCENTS = /\p{Mn}/gu;
const WORDS = /[!-/:-@[-`{-~\p{P}]|[^\p{White_Space}!-/:-@[-`{-~\p{P}]+/gu;
const SPACE = /\p{White_Space}/gu;

export class WordPiece {
  readonly leadingIds: readonly number[];
  readonly trailingIds: readonly number[];
  /** The highest id + 1. */
  readonly vocabSize: number;
  readonly #json: WordPieceJson;
  readonly #vocab: ReadonlyMap<string, number>;
  readonly #unknown: number;
  /** UTF-16 units of the longest piece. */
  readonly #longest: number;

  constructor(json: WordPieceJson) {
    this.#json = json;
    this.#vocab = new Map(Object.entries(json.model.vocab));
    this.#unknown = this.#vocab.get(json.model.unk_token)!;
    const names = specialNames(json);
    const text = names.indexOf(TEXT);
    const ids = (some: readonly string[]) => some.map((name) => idOf(json, name)!);
    this.leadingIds = ids(names.slice(0, text));
    this.trailingIds = ids(names.slice(text + 1));
    const all = [...this.#vocab.values(), ...json.added_tokens.map(({ id }) => id)];
    this.vocabSize = all.reduce((most, id) => Math.max(most, id), -1) + 1;
    this.#longest = [...this.#vocab.keys()].reduce((most, piece) => Math.max(most, piece.length), 0);
  }

  /** The first `count` ids of a text, or all if there are fewer. The rest of the text costs nothing. */
  encodeHead(text: string, count: number): number[] {
    const ids: number[] = [];
    for (let start = 0; start < text.length && ids.length < count; ) {
      const end = sliceEnd(text, start);
      for (const [word] of this.#normalized(text.slice(start, end)).matchAll(WORDS)) {
        for (const id of this.#idsOf(word)) ids.push(id);
        if (ids.length >= count) break;
      }
      start = end;
    }
    return ids.slice(0, Math.max(0, count));
  }

  /** The id of an added token by its name. */
  idOf(name: string): number | undefined {
    return this.#json.added_tokens.find(({ content }) => content === name)?.id;
  }

  /** The id of a piece by its exact spelling. */
  vocabularyId(token: string): number | undefined {
    return this.#vocab.get(token);
  }

  #normalized(slice: string): string {
    const { clean_text, handle_chinese_chars, lowercase, strip_accents } = this.#json.normalizer;
    let text = slice;
    // White space counts as such before control characters go: some is both.
    if (clean_text)
      text = text
        .replace(/[\t\n\r]/g, ' ')
        .replace(CONTROL, '')
        .replace(SPACE, ' ');
    if (handle_chinese_chars) text = text.replace(CHINESE, ' $& ');
    if (strip_accents ?? lowercase) text = text.normalize('NFD').replace(ACCENTS, '');
    // Character by character: a sigma at the end of a word has no form of its own here.
    return lowercase ? Array.from(text, (character) => character.toLowerCase()).join('') : text;
  }

  #idsOf(word: string): number[] {
    const { continuing_subword_prefix: prefix, max_input_chars_per_word } = this.#json.model;
    if (word.length > max_input_chars_per_word && [...word].length > max_input_chars_per_word) return [this.#unknown];
    const ids: number[] = [];
    for (let start = 0; start < word.length; ) {
      const before = start === 0 ? '' : prefix;
      let end = Math.min(word.length, start + this.#longest);
      let id: number | undefined;
      for (; end > start; end--) {
        id = this.#vocab.get(before + word.slice(start, end));
        if (id !== undefined) break;
      }
      if (id === undefined) return [this.#unknown];
      ids.push(id);
      start = end;
    }
    return ids;
  }
}

/** A slice ends before white space, so that words and accents are whole. */
function sliceEnd(text: string, start: number): number {
  const space = text.slice(start + SLICE, start + LONGEST_SLICE).search(/\s/);
  if (space >= 0) return start + SLICE + space;
  return text.length - start <= LONGEST_SLICE ? text.length : withoutHalf(text, start + LONGEST_SLICE);
}

/** Stands for the text among the names of a template. */
const TEXT = '';

/** Names of the special tokens around a text, and {@link TEXT} at its place. */
function specialNames({ post_processor: template }: WordPieceJson): string[] {
  if (template === null) return [TEXT];
  if (template.type === 'BertProcessing') return [template.cls[0], TEXT, template.sep[0]];
  const part = z.looseObject({ SpecialToken: z.looseObject({ id: z.string().min(1) }) });
  return template.single.map((each) => part.safeParse(each).data?.SpecialToken.id ?? TEXT);
}

function idOf({ added_tokens, model }: WordPieceJson, name: string): number | undefined {
  if (name === TEXT) return -1;
  return added_tokens.find(({ content }) => content === name)?.id ?? model.vocab[name];
}
