/**
 * The query of a completion: the lines around its cursor.
 *
 * It is the last `queryLines` non-blank lines before the cursor (RepoEval and CrossCodeEval take 10) and half as many
 * after it. (The data builder behind the paper takes 5·n on either side, with n = 1.) The lines to be completed are not
 * seen.
 */
import { type Chunk, identifiers } from '../chunk.ts';

/** Characters on either side of the cursor that are read, so that one endless line costs no more than many lines. */
export const REACH = 16_384;

/** A chunk adds nothing if more than this share of its lines stands around the cursor. The bound is Tabby's. */
const DUPLICATE = 0.9;

/** Of so many lines, more than {@link DUPLICATE} are all of them. */
const WHOLE_LINES = 10;

export interface CursorQuery {
  /** The lines around the cursor. */
  readonly text: string;
  /** The identifiers in them. */
  readonly tokens: readonly string[];
  /**
   * Whether a chunk may be such a copy, as far as its identifiers and lines tell without its text. A chunk of up to ten
   * lines is one only if all of its identifiers stand around the cursor.
   */
  mayRepeat(chunk: Pick<Chunk, 'tokens' | 'startLine' | 'endLine'>): boolean;
  /** Whether a chunk is a copy of the text around the cursor, which the model sees anyway. */
  repeats(chunk: string): boolean;
}

/** Makes the query for a text around a cursor. */
export function cursorQuery(before: string, after: string, queryLines: number): CursorQuery {
  const above = nonBlank(before.slice(-REACH));
  const below = nonBlank(after.slice(0, REACH));
  const text = [...above.slice(-queryLines), ...below.slice(0, Math.floor(queryLines / 2))].join('\n');
  let local: ReadonlySet<string> | undefined;
  let localTokens: ReadonlySet<string> | undefined;
  return {
    text,
    tokens: identifiers(text),
    mayRepeat({ tokens, startLine, endLine }) {
      localTokens ??= new Set(identifiers([...above, ...below].join('\n')));
      const known = tokens.filter((token) => localTokens?.has(token)).length;
      // Of more than ten lines some may be missing, with identifiers of their own.
      const share = endLine - startLine < WHOLE_LINES ? 1 : 0.5;
      return known >= share * tokens.length;
    },
    repeats(chunk) {
      local ??= new Set([...above, ...below].map((line) => line.trim()));
      const lines = nonBlank(chunk);
      return lines.filter((line) => local?.has(line.trim())).length > DUPLICATE * lines.length;
    },
  };
}

const nonBlank = (text: string) => text.split(/\r\n|\n|\r/).filter((line) => line.trim() !== '');
