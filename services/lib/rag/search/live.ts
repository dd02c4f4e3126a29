/**
 * Chunks of files that a client has sent with its request: newer than what is indexed, and searched by the paper's
 * retriever, since nobody else knows them. They take their places among the hits of the index.
 */
import type { Chunk } from '../chunk.ts';
import type { CursorQuery } from './query.ts';
import { DistinctChunks } from './sameness.ts';

/** A chunk of the client's, as a hit of a search. Its text is always there, its vector is not. */
export interface LiveHit extends Chunk {
  /** |A∩B| / |A∪B| of its identifiers and those of the query, in (0, 1]. */
  readonly score: number;
}

/**
 * The best `topK` chunks that have anything in common with the query and do not repeat the text around the cursor, best
 * first; of equal ones the first in the order of `chunks`. Yields between two chunks.
 */
export function* liveHits(
  chunks: readonly Chunk[],
  query: Pick<CursorQuery, 'tokens' | 'repeats' | 'mayRepeat'>,
  topK: number,
): Generator<void, LiveHit[]> {
  const wanted = new Set(query.tokens);
  const hits: LiveHit[] = [];
  for (const chunk of chunks) {
    const common = chunk.tokens.filter((token) => wanted.has(token)).length;
    if (common > 0) hits.push({ ...chunk, score: common / (wanted.size + chunk.tokens.length - common) });
    yield;
  }
  const best = new DistinctChunks<LiveHit>(topK);
  for (const hit of hits.sort((a, b) => b.score - a.score)) {
    if (best.missing === 0) break;
    if (!query.mayRepeat(hit) || !query.repeats(hit.text)) best.add(hit);
    yield;
  }
  return best.kept;
}

/**
 * The places of live hits among the hits of an index. Scores of one retriever are compared; where the index is searched
 * by another one, the first live hit comes before the first of the index, the second before the second, and so on.
 */
export class LivePlaces {
  readonly #hits: readonly LiveHit[];
  readonly #isComparable: boolean;
  #next = 0;

  constructor(hits: readonly LiveHit[], isComparable: boolean) {
    this.#hits = hits;
    this.#isComparable = isComparable;
  }

  /** The live hits that come before a hit of the index. @param rank of that hit, from 0. */
  before(score: number, rank: number): LiveHit[] {
    const start = this.#next;
    const isBefore = (hit: LiveHit) => (this.#isComparable ? hit.score >= score : this.#next <= rank);
    while (this.#next < this.#hits.length && isBefore(this.#hits[this.#next]!)) this.#next++;
    return this.#hits.slice(start, this.#next);
  }

  /** Those that are left. */
  rest(): LiveHit[] {
    return this.before(-Infinity, Infinity);
  }
}
