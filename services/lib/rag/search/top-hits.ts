/** The hits of a search, and the best of them: every retriever answers in this form. */

/** Tells of a chunk, by its ordinal, whether a search leaves it out. */
export type Excludes = (ordinal: number) => boolean;

export interface Hit {
  /** The chunk's number in the index, in the order of (path, line). */
  readonly ordinal: number;
  /** Higher is better. Its unit depends on the retriever. */
  readonly score: number;
}

/** Higher scores come first, then lower ordinals: no two hits are equal, so every ranking is deterministic. */
const precedes = (score: number, ordinal: number, other: Hit) =>
  score > other.score || (score === other.score && ordinal < other.ordinal);

/** Keeps the best `limit` of the hits that are added, best first. */
export class TopHits {
  readonly hits: Hit[] = [];
  readonly #limit: number;
  readonly #excludes: Excludes | undefined;

  /** @param excludes the chunks that never become hits. It is asked only about chunks that would become one. */
  constructor(limit: number, excludes?: Excludes) {
    this.#limit = limit;
    this.#excludes = excludes;
  }

  /** The score that a hit must reach to be among the best; -Infinity as long as there is room. */
  get threshold(): number {
    return this.hits.length < this.#limit ? Number.NEGATIVE_INFINITY : this.hits[this.#limit - 1]!.score;
  }

  add(score: number, ordinal: number): void {
    const { hits } = this;
    if (hits.length === this.#limit && !precedes(score, ordinal, hits[hits.length - 1]!)) return; // most hits end here
    if (this.#excludes?.(ordinal)) return;
    let at = hits.length;
    while (at > 0 && precedes(score, ordinal, hits[at - 1]!)) at--;
    hits.splice(at, 0, { ordinal, score });
    if (hits.length > this.#limit) hits.pop();
  }
}
