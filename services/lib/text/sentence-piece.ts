/**
 * SentencePiece's BPE as tokenizer.json has it, of Code Llama and CodeGemma: text is not divided into words before its
 * characters are merged, a space is the character `▁`, and a character without a token is its UTF-8 bytes (`<0x0A>`).
 *
 * A long text is divided all the same, where no token can lie across the cut: before spaces that follow something
 * else, and on both sides of line ends. That holds for a vocabulary in which no token has a `▁` after another
 * character, and none has a line end beside another character; any other is refused.
 */
import { invalid, type TokenizerJson } from './tokenizer-json.ts';

const SPACE = '▁';
const WORDS = /\n+|[ ▁]*[^ ▁\n]+|[ ▁]+/g;
const SPACE_WITHIN = /[^▁]▁/;
const LINE_END_WITHIN = /[^\n]\n|\n[^\n]/;
const BYTE = /^<0x([0-9A-F]{2})>$/;

export interface SentencePiece {
  /** Whether a text is given a space before it (SentencePiece's dummy prefix). */
  readonly prefixSpace: boolean;
}

/**
 * What a tokenizer.json says of it; undefined where it is byte-level BPE.
 * @throws ServingError bundle_invalid for a form of it that is not supported, which names the field.
 */
export function sentencePieceOf(json: TokenizerJson, file: string): SentencePiece | undefined {
  const { model, normalizer, pre_tokenizer, added_tokens } = json;
  if (!model.byte_fallback) return undefined;
  const steps = normalizer?.type === 'Sequence' ? (normalizer.normalizers ?? []) : normalizer ? [normalizer] : [];
  const names = steps.map(({ type }) => type);
  const replace = steps.at(-1);
  const isKnown = ['Replace', 'Prepend,Replace'].includes(names.join());
  if (
    !isKnown ||
    replace?.pattern?.String !== ' ' ||
    replace.content !== SPACE ||
    (names.length === 2 && steps[0]?.prepend !== SPACE)
  ) {
    const found = names.join(', ') || 'nothing';
    throw invalid(file, `normalizer ${found} is not supported with byte_fallback: it must make ▁ of spaces`);
  }
  // A split at spaces does nothing once there are none.
  if (pre_tokenizer !== null && !(pre_tokenizer.type === 'Split' && splitsAtSpaces(pre_tokenizer))) {
    throw invalid(file, `pre_tokenizer ${pre_tokenizer.type} is not supported with byte_fallback`);
  }
  const across = Object.keys(model.vocab).find((token) => SPACE_WITHIN.test(token) || LINE_END_WITHIN.test(token));
  if (across !== undefined) {
    throw invalid(
      file,
      `model.vocab has ${JSON.stringify(across)}: a space or a line end within a token is not supported`,
    );
  }
  const changed = added_tokens.find(
    ({ content, normalized, special }) => (normalized ?? !special) && /[ ▁]/.test(content),
  );
  if (changed !== undefined) {
    throw invalid(
      file,
      `added token ${JSON.stringify(changed.content)} is looked for in normalised text: not supported`,
    );
  }
  for (let byte = 0; byte < 256; byte++) {
    const token = `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`;
    const isToken = byte < 0x80 && Object.hasOwn(model.vocab, String.fromCharCode(byte).replace(' ', SPACE));
    if (!isToken && !Object.hasOwn(model.vocab, token)) throw invalid(file, `model.vocab has no token ${token}`);
  }
  return { prefixSpace: names.length === 2 };
}

const splitsAtSpaces = ({ pattern }: NonNullable<TokenizerJson['pre_tokenizer']>) =>
  typeof pattern === 'object' && 'String' in pattern && pattern.String === ' ';

/** The parts of a text, no token of which lies in two of them. */
export const pieceWords = (text: string): string[] => text.match(WORDS) ?? [];

/** A part as the model's vocabulary spells it. */
export const pieceSymbols = (word: string): string[] => [word.replaceAll(' ', SPACE)];

/** The bytes that a token of the vocabulary stands for. */
export function pieceBytes(token: string): Uint8Array {
  const [, byte] = BYTE.exec(token) ?? [];
  return byte === undefined
    ? Buffer.from(token.replaceAll(SPACE, ' '), 'utf8')
    : Uint8Array.of(Number.parseInt(byte, 16));
}
