/**
 * Merges several rankings by reciprocal rank: positions near the top count, whatever the scores of each retriever mean.
 */
import { type Hit, TopHits } from './top-hits.ts';

/** Cormack, Clarke and Büttcher's constant (SIGIR 2009). */
const RANK_OFFSET = 60;

/** How many hits each of the merged rankings has; more for a larger top-k. */
export const fusedDepth = (topK: number) => Math.max(50, 5 * topK);

/** The score of a chunk is the sum of 1 / (60 + rank) over the rankings, with ranks from 1. */
export function fuse(rankings: readonly (readonly Hit[])[], topK: number): Hit[] {
  const scores = new Map<number, number>();
  for (const ranking of rankings) {
    for (const [i, { ordinal }] of ranking.entries()) {
      scores.set(ordinal, (scores.get(ordinal) ?? 0) + 1 / (RANK_OFFSET + i + 1));
    }
  }
  const best = new TopHits(topK);
  if (topK > 0) for (const [ordinal, score] of scores) best.add(score, ordinal);
  return best.hits;
}
