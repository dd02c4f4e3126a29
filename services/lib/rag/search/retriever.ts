/** What every retriever has in common: what it is asked and what it answers. */

/** Chunks from `start` to before `end`, by their number in the index. */
export interface Range {
  readonly start: number;
  readonly end: number;
}

export interface Hit {
  /** The chunk, by its number in the index: (path, line) order. */
  readonly ordinal: number;
  /** Higher is better; what it measures is the retriever's own. */
  readonly score: number;
}

/** Higher score first, then lower number: no two hits are equal, so every ranking is deterministic. */
const precedes = (score: number, ordinal: number, other: Hit) =>
  score > other.score || (score === other.score && ordinal < other.ordinal);

/** The best `limit` of the hits that were added, best first. */
export class TopHits {
  readonly hits: Hit[] = [];
  readonly #limit: number;
  readonly #excluded: Range | undefined;

  /** @param excluded chunks that are not answered. */
  constructor(limit: number, excluded?: Range) {
    this.#limit = limit;
    this.#excluded = excluded;
  }

  /** What a hit must reach to be of the best; no bound as long as there is room. */
  get threshold(): number {
    return this.hits.length < this.#limit ? Number.NEGATIVE_INFINITY : this.hits[this.#limit - 1]!.score;
  }

  add(score: number, ordinal: number): void {
    const { hits } = this;
    if (hits.length === this.#limit && !precedes(score, ordinal, hits[hits.length - 1]!)) return; // most end here
    if (this.#excluded && ordinal >= this.#excluded.start && ordinal < this.#excluded.end) return;
    let at = hits.length;
    while (at > 0 && precedes(score, ordinal, hits[at - 1]!)) at--;
    hits.splice(at, 0, { ordinal, score });
    if (hits.length > this.#limit) hits.pop();
  }
}
