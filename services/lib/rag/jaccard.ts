/**
 * Exact top-k by Jaccard similarity |A∩B| / |A∪B| of identifier sets, over an inverted index in memory: the paper's best
 * retriever (appendix F) and its fastest. Chunks are numbered in the order in which they are added (path, then line).
 */

/** What the index needs of a chunk. */
export interface Indexable {
  readonly path: string;
  readonly tokens: readonly string[];
}

export interface Hit {
  /** The chunk, by its number of addition. */
  readonly ordinal: number;
  /** (0, 1] */
  readonly score: number;
}

interface Range {
  readonly start: number;
  end: number;
}

/** Collects chunks; {@link build} lays them out. Chunks of one path come one after the other. */
export class JaccardBuilder {
  readonly #ids = new Map<string, number>();
  readonly #files = new Map<string, Range>();
  readonly #documents: Uint32Array[] = [];
  #postings = 0;

  add({ path, tokens }: Indexable): void {
    const ordinal = this.#documents.length;
    const file = this.#files.get(path);
    if (file) file.end = ordinal + 1;
    else this.#files.set(path, { start: ordinal, end: ordinal + 1 });
    const document = new Uint32Array(tokens.length);
    for (const [i, token] of tokens.entries()) {
      const id = this.#ids.get(token) ?? this.#ids.size;
      if (id === this.#ids.size) this.#ids.set(token, id);
      document[i] = id;
    }
    this.#documents.push(document);
    this.#postings += document.length;
  }

  build(): JaccardIndex {
    const sizes = Uint32Array.from(this.#documents, (document) => document.length);
    // offsets[t]..offsets[t + 1] are the postings of token t: chunk numbers, ascending.
    const offsets = new Uint32Array(this.#ids.size + 1);
    for (const document of this.#documents) for (const id of document) offsets[id + 1]!++;
    for (let id = 0; id < this.#ids.size; id++) offsets[id + 1]! += offsets[id]!;
    const postings = new Uint32Array(this.#postings);
    const next = offsets.slice();
    for (const [ordinal, document] of this.#documents.entries())
      for (const id of document) postings[next[id]!++] = ordinal;
    return new JaccardIndex(this.#ids, this.#files, sizes, offsets, postings);
  }
}

export class JaccardIndex {
  readonly #ids: ReadonlyMap<string, number>;
  readonly #files: ReadonlyMap<string, Readonly<Range>>;
  /** [chunks] tokens per chunk. */
  readonly #sizes: Uint32Array;
  readonly #offsets: Uint32Array;
  readonly #postings: Uint32Array;
  /** [chunks] tokens shared with the query at hand; all zero between two searches. */
  readonly #shared: Uint32Array;
  /** [chunks] the chunks that share any, the first `count` of them. */
  readonly #touched: Uint32Array;

  constructor(
    ids: ReadonlyMap<string, number>,
    files: ReadonlyMap<string, Readonly<Range>>,
    sizes: Uint32Array,
    offsets: Uint32Array,
    postings: Uint32Array,
  ) {
    this.#ids = ids;
    this.#files = files;
    this.#sizes = sizes;
    this.#offsets = offsets;
    this.#postings = postings;
    this.#shared = new Uint32Array(sizes.length);
    this.#touched = new Uint32Array(sizes.length);
  }

  /** Chunks in the index. */
  get size(): number {
    return this.#sizes.length;
  }

  /**
   * The `topK` most similar chunks, best first; of equal ones the earlier in (path, line). None that shares nothing.
   * @param query distinct identifiers.
   * @param exclude path of the file whose chunks are left out: the one being edited.
   */
  search(query: readonly string[], topK: number, exclude?: string): Hit[] {
    if (topK < 1) return [];
    const count = this.#countShared(query);
    const own = exclude === undefined ? undefined : this.#files.get(exclude);
    const best: Hit[] = [];
    for (let i = 0; i < count; i++) {
      const ordinal = this.#touched[i]!;
      const shared = this.#shared[ordinal]!;
      this.#shared[ordinal] = 0;
      if (own && ordinal >= own.start && ordinal < own.end) continue;
      const score = shared / (query.length + this.#sizes[ordinal]! - shared);
      if (best.length === topK && !precedes(score, ordinal, best[topK - 1]!)) continue; // most end here
      insert(best, { ordinal, score });
      if (best.length > topK) best.pop();
    }
    return best;
  }

  /** Fills `#shared` and `#touched`; answers how many chunks were touched. */
  #countShared(query: readonly string[]): number {
    const shared = this.#shared;
    const touched = this.#touched;
    const postings = this.#postings;
    let count = 0;
    for (const token of query) {
      const id = this.#ids.get(token);
      if (id === undefined) continue;
      for (let p = this.#offsets[id]!; p < this.#offsets[id + 1]!; p++) {
        const ordinal = postings[p]!;
        if (shared[ordinal] === 0) touched[count++] = ordinal;
        shared[ordinal]!++;
      }
    }
    return count;
  }
}

/** Higher score first, then lower number. Equal fractions are equal doubles, so ties are exact. */
const precedes = (score: number, ordinal: number, other: Hit) =>
  score > other.score || (score === other.score && ordinal < other.ordinal);

function insert(best: Hit[], hit: Hit): void {
  let at = best.length;
  while (at > 0 && precedes(hit.score, hit.ordinal, best[at - 1]!)) at--;
  best.splice(at, 0, hit);
}
