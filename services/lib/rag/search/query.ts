/**
 * The query of a completion: the lines around its cursor.
 *
 * It is the last `queryLines` non-blank lines before the cursor (RepoEval and CrossCodeEval take 10) and half as many
 * after it. (The data builder behind the paper takes 5·n on either side, with n = 1.) The lines to be completed are not
 * seen.
 */
import { identifiers } from '../chunk.ts';

/** Characters on either side of the cursor that are read, so that one endless line costs no more than many lines. */
export const REACH = 16_384;

/** A chunk adds nothing if more than this share of its lines stands around the cursor. The bound is Tabby's. */
const DUPLICATE = 0.9;

export interface CursorQuery {
  /** The lines around the cursor. */
  readonly text: string;
  /** The identifiers in them. */
  readonly tokens: readonly string[];
  /** Whether a chunk is a copy of the text around the cursor, which the model sees anyway. */
  repeats(chunk: string): boolean;
}

/** Makes the query for a text around a cursor. */
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
