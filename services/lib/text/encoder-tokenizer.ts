/** The tokenizer of an encoder: byte-level BPE as language models have, or BERT's WordPiece, which only encodes. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { loadTokenizer, type Tokenizer } from './tokenizer.ts';
import { invalid } from './tokenizer-json.ts';
import { readWordPieceJson, WordPiece } from './word-piece.ts';

export type EncoderTokenizer = Pick<
  Tokenizer,
  'encodeHead' | 'leadingIds' | 'trailingIds' | 'idOf' | 'vocabularyId' | 'vocabSize'
>;

/**
 * @param dir folder with tokenizer.json.
 * @throws ServingError bundle_invalid, which names the file.
 */
export async function loadEncoderTokenizer(dir: string): Promise<EncoderTokenizer> {
  const file = join(dir, 'tokenizer.json');
  const text = await readFile(file, 'utf8').catch((cause) => {
    throw invalid(file, `cannot be read (${cause.code})`, cause);
  });
  const json = readWordPieceJson(text, file);
  return json === undefined ? loadTokenizer(dir) : new WordPiece(json);
}
