/**
 * What a completion looks for: the lines around its cursor.
 *
 * The last `queryLines` non-blank lines before the cursor (RepoEval and CrossCodeEval take 10) and half as many after it
 * (the data builder behind the paper takes 5·n on either side, n = 1; nothing of the lines to be completed is seen).
 */
import { identifiers } from '../chunk.ts';

/** Text farther from the cursor than this is not looked at, so that one endless line costs no more than many. */
export const REACH = 16_384;

/** A chunk of which more than this share of lines stands around the cursor adds nothing. The bound is Tabby's. */
const DUPLICATE = 0.9;

export interface CursorQuery {
  /** The lines around the cursor. */
  readonly text: string;
  /** Their identifier set. */
  readonly tokens: readonly string[];
  /** Whether a chunk says what stands around the cursor already: it is a copy, and the model sees the original. */
  repeats(chunk: string): boolean;
}

/** The query of the text around a cursor. */
export function cursorQuery(before: string, after: string, queryLines: number): CursorQuery {
  const above = nonBlank(before.slice(-REACH));
  const below = nonBlank(after.slice(0, REACH));
  const text = [...above.slice(-queryLines), ...below.slice(0, Math.floor(queryLines / 2))].join('\n');
  let local: ReadonlySet<string> | undefined;
  return {
    text,
    tokens: identifiers(text),
    repeats(chunk) {
      local ??= new Set([...above, ...below].map((line) => line.trim()));
      const lines = nonBlank(chunk);
      return lines.filter((line) => local?.has(line.trim())).length > DUPLICATE * lines.length;
    },
  };
}

const nonBlank = (text: string) => text.split(/\r\n|\n|\r/).filter((line) => line.trim() !== '');
