/**
 * The token ids that an encoder reads of a chunk: its source or its syntax tree, cut to length, with special tokens
 * around.
 */
import type { EncoderManifest } from '../../model/bundle/bundle.ts';
import { ServingError } from '../../process/errors.ts';
import { type EncoderTokenizer, loadEncoderTokenizer } from '../../text/encoder-tokenizer.ts';
import { SyntaxTrees } from './syntax-tree.ts';

/** The part of a chunk that is encoded. */
export interface EncoderInput {
  /** Its ending tells the language. */
  readonly path: string;
  readonly text: string;
}

export interface InputIds {
  readonly ids: readonly number[];
  /** A syntax tree was wanted but there is none: these are the ids of the source. */
  readonly fellBack: boolean;
}

export interface InputBuilder {
  build(chunk: EncoderInput): InputIds;
  dispose(): void;
}

type InputSettings = Pick<EncoderManifest, 'input' | 'recipe' | 'modality' | 'addSpecialTokens' | 'maxTokens'>;

/** @throws ServingError bundle_invalid if the tokenizer lacks a token that the encoder's input needs. */
export async function inputBuilder(dir: string, tokenizerDir: string, settings: InputSettings): Promise<InputBuilder> {
  const tokenizer = await loadEncoderTokenizer(tokenizerDir);
  const { before, after } = surroundings(tokenizer, settings, dir);
  const room = settings.maxTokens - before.length - after.length;
  const trees = settings.modality === 'ast' ? await SyntaxTrees.load() : undefined;
  const unknown = trees && named(tokenizer, '<unk>', dir);
  return {
    build({ path, text }) {
      const sequence = trees?.sequence(path, text);
      if (!sequence) return { ids: [...before, ...tokenizer.encodeHead(text, room), ...after], fellBack: !!trees };
      const ids = [...before];
      const end = before.length + room;
      for (const token of sequence) {
        if (ids.length >= end) break;
        if ('mark' in token) ids.push(tokenizer.vocabularyId(token.mark) ?? (unknown as number));
        else ids.push(...tokenizer.encodeHead(token.text, end - ids.length));
      }
      return { ids: [...ids, ...after], fellBack: false };
    },
    dispose: () => trees?.dispose(),
  };
}

function named(tokenizer: EncoderTokenizer, name: string, dir: string): number {
  const id = tokenizer.idOf(name) ?? tokenizer.vocabularyId(name);
  if (id === undefined)
    throw new ServingError('bundle_invalid', `the encoder's tokenizer in ${dir} lacks the token ${name}`);
  return id;
}

/** The special tokens before and after the text. */
function surroundings(tokenizer: EncoderTokenizer, settings: InputSettings, dir: string) {
  if (settings.input === 'unixcoder') {
    const [start, mode, end] = ['<s>', '<encoder-only>', '</s>'].map((name) => named(tokenizer, name, dir)) as [
      number,
      number,
      number,
    ];
    return { before: [start, mode, end], after: [end] };
  }
  const { leadingIds, trailingIds } = tokenizer;
  const before = settings.addSpecialTokens ? leadingIds : [];
  if (settings.recipe === 'published') {
    // If the tokenizer has a template, it ends with the end-of-text token.
    return { before, after: trailingIds.length > 0 ? trailingIds : [named(tokenizer, '<|endoftext|>', dir)] };
  }
  return { before, after: settings.addSpecialTokens ? trailingIds : [] };
}
