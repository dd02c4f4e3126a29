/**
 * How many of the found chunks stand as text in a mixed prompt that does not say: those that stand out from the others
 * by their scores. Text costs a hundred tokens where a soft token costs one, and only what is nearest to the cursor is
 * worth that.
 */

/**
 * Share of the best chunk's lead over the last one that a chunk must have to stand as text. Measured with the model
 * that ships: 1.7 of ten chunks stand as text then, and the prompt is worth what it is with all of them as text; with
 * half of the lead it is worth no more, and has a third more text (docs/evaluation.md).
 */
const SHARE_OF_LEAD = 0.75;

/**
 * The number of chunks that stand out: the best one, and those after it that have at least three quarters of its lead
 * over the last one found. Scores of every retriever can be compared in this way, whatever their unit and their zero:
 * the number stays the same if all of them are multiplied or shifted. Where all are alike, nothing stands out but the
 * first.
 * @param scores best first. One that is higher than the one before it is of another unit, and counts as equal to it.
 */
export function standOut(scores: readonly number[]): number {
  const [best] = scores;
  if (best === undefined) return 0;
  const falling: number[] = [];
  for (const score of scores) falling.push(Math.min(score, falling.at(-1) ?? score));
  const last = falling.at(-1)!;
  const least = last + SHARE_OF_LEAD * (best - last);
  const standing = best > last ? falling.findIndex((score) => score < least) : 1;
  return Math.max(standing, 1);
}
