/**
 * The reward of a rollout, as the authors compute it: exact match + edit similarity, over as many lines as the target
 * has. Lengths and distances count code points.
 */

/**
 * @param written the rollout's text, without the token that ended it
 * @returns from 0 to 2
 */
export function rewardOf(written: string, target: string): { exactMatch: number; editSimilarity: number } {
  const lines = written.split('\n').slice(0, target.split('\n').length).join('\n');
  return { exactMatch: sameTokens(lines, target) ? 1 : 0, editSimilarity: similarity([...lines], [...target]) };
}

/** Words and signs without regard to white space, camel case and the kind of quotes. */
const tokensOf = (text: string) =>
  text
    .replace(/([^A-Za-z0-9_])/gu, ' $1 ')
    .replace(/([a-z])([A-Z])/g, '$1 $2')
    .replace(/["']/g, '`')
    .split(/\s+/)
    .filter((token) => token !== '');

function sameTokens(a: string, b: string): boolean {
  const [ours, theirs] = [tokensOf(a), tokensOf(b)];
  return ours.length === theirs.length && ours.every((token, i) => token === theirs[i]);
}

/** 1 - Levenshtein distance / longer length; 0 for two empty texts, as in the authors' code. */
function similarity(a: readonly string[], b: readonly string[]): number {
  const longer = Math.max(a.length, b.length);
  if (longer === 0) return 0;
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (const [i, x] of a.entries()) {
    const next = [i + 1];
    for (const [j, y] of b.entries()) next.push(Math.min(row[j + 1]! + 1, next[j]! + 1, row[j]! + (x === y ? 0 : 1)));
    row = next;
  }
  return 1 - row[b.length]! / longer;
}
