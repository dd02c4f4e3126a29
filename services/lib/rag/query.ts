/**
 * What a completion looks for: the identifiers around its cursor.
 *
 * The last `queryLines` non-blank lines before the cursor (RepoEval and CrossCodeEval take 10) and half as many after it
 * (the data builder behind the paper takes 5·n on either side, n = 1; nothing of the lines to be completed is seen).
 */
import { identifiers } from './chunk.ts';

/** Text farther from the cursor than this is not looked at, so that one endless line costs no more than many. */
const REACH = 16_384;

/** The identifier set of the text around the cursor. */
export function queryTokens(before: string, after: string, queryLines: number): string[] {
  const above = nonBlank(before.slice(-REACH)).slice(-queryLines);
  const below = nonBlank(after.slice(0, REACH)).slice(0, Math.floor(queryLines / 2));
  return identifiers([...above, ...below].join('\n'));
}

const nonBlank = (text: string) => text.split(/\r\n|\n|\r/).filter((line) => line.trim() !== '');
