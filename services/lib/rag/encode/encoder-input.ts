/** A chunk → the token ids that its encoder reads: what stands around the text, how much of it is taken, in what form. */
import type { EncoderManifest } from '../../model/bundle/bundle.ts';
import { ServingError } from '../../process/errors.ts';
import { loadTokenizer, type Tokenizer } from '../../text/tokenizer.ts';
import { SyntaxTrees } from './syntax-tree.ts';

/** What is encoded of a chunk. */
export interface EncoderInput {
  /** Tells the language. */
  readonly path: string;
  readonly text: string;
}

export interface InputIds {
  readonly ids: readonly number[];
  /** The syntax tree was wanted and could not be had: these are the ids of the source. */
  readonly fellBack: boolean;
}

export interface InputBuilder {
  build(chunk: EncoderInput): InputIds;
  dispose(): void;
}

type InputSettings = Pick<EncoderManifest, 'input' | 'recipe' | 'modality' | 'addSpecialTokens' | 'maxTokens'>;

/** @throws ServingError bundle_invalid where the tokenizer lacks a token of the encoder's form. */
export async function inputBuilder(dir: string, tokenizerDir: string, settings: InputSettings): Promise<InputBuilder> {
  const tokenizer = await loadTokenizer(tokenizerDir);
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

function named(tokenizer: Tokenizer, name: string, dir: string): number {
  const id = tokenizer.idOf(name) ?? tokenizer.vocabularyId(name);
  if (id === undefined) throw new ServingError('bundle_invalid', `the encoder's tokenizer in ${dir} lacks ${name}`);
  return id;
}

function surroundings(tokenizer: Tokenizer, settings: InputSettings, dir: string) {
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
    // The tokenizer's own template ends with it where it has one.
    return { before, after: trailingIds.length > 0 ? trailingIds : [named(tokenizer, '<|endoftext|>', dir)] };
  }
  return { before, after: settings.addSpecialTokens ? trailingIds : [] };
}
