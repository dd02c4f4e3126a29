/**
 * Exact top-k over identifier sets: an inverted index in memory that stops early.
 *
 * Chunks are numbered within by set size, so that a bound on the size (the score of a chunk depends on what it shares
 * with the query, and on its size) is a slice of every posting list. Rare identifiers come first. Once no chunk that has
 * shared nothing so far could reach the best k, the rest of the lists is not walked: the few chunks that still can are
 * completed one by one. An identifier of more than 1 in 32 chunks (`self`, `return`, `import`: where the time would go)
 * lies as a bitmap, smaller than its list and quick to look a chunk up in.
 */
import { type Hit, type Range, TopHits } from './retriever.ts';

/** How shared identifiers make a score. Weights are whole numbers: sums are exact in any order, and so are ties. */
export interface Scoring {
  /** @param frequency chunks that hold the identifier. */
  weight(frequency: number): number;
  /** Rises with `shared`, the summed weights of the identifiers in common. @param size identifiers of the chunk. */
  score(shared: number, size: number): number;
}

/** Chunks per one of the top-k that are looked at in full to learn what score the top-k reaches. */
const SAMPLE = 4;

/** An identifier of the query: the chunks that hold it, as a bitmap or an ascending list of their numbers within. */
interface Term {
  readonly frequency: number;
  readonly weight: number;
  readonly bits: Uint32Array | undefined;
  readonly list: Uint32Array;
}

export interface InvertedIndexParts {
  readonly ids: ReadonlyMap<string, number>;
  /** By path: its chunks' ordinals. */
  readonly files: ReadonlyMap<string, Range>;
  /** What the names of both take in memory. */
  readonly nameBytes: number;
  /** Sizes that occur, ascending. */
  readonly sizes: Uint32Array;
  /** Number within → place of its size in `sizes`. */
  readonly sizeClass: Uint32Array;
  /** Place in `sizes` → first number within; one more at the end. */
  readonly classStart: Uint32Array;
  /** Number within → ordinal. */
  readonly ordinals: Uint32Array;
  /** Identifier → chunks that hold it. */
  readonly frequencies: Uint32Array;
  /** Identifier → where its list starts in `lists`; one more at the end. */
  readonly offsets: Uint32Array;
  readonly lists: Uint32Array;
  /** Of the identifiers that have no list. */
  readonly bitmaps: ReadonlyMap<number, Uint32Array>;
}

export class InvertedIndex {
  readonly #parts: InvertedIndexParts;
  /** Number within → weights shared with the query at hand; all zero between two searches. */
  readonly #shared: Uint32Array;
  /** The chunks that share any, the first `#touchedCount` of them. */
  readonly #touched: Uint32Array;
  #touchedCount = 0;

  constructor(parts: InvertedIndexParts) {
    this.#parts = parts;
    this.#shared = new Uint32Array(parts.ordinals.length);
    this.#touched = new Uint32Array(parts.ordinals.length);
  }

  /** Chunks in the index. */
  get size(): number {
    return this.#parts.ordinals.length;
  }

  /** Identifiers per chunk, on average. */
  get averageSize(): number {
    const { sizes, classStart } = this.#parts;
    let sum = 0;
    for (let c = 0; c < sizes.length; c++) sum += sizes[c]! * (classStart[c + 1]! - classStart[c]!);
    return this.size === 0 ? 0 : sum / this.size;
  }

  /** The chunks of one file. */
  rangeOf(path: string): Range | undefined {
    return this.#parts.files.get(path);
  }

  /** Bytes held per chunk, names of identifiers and files included. */
  get bytesPerChunk(): number {
    const { frequencies, offsets, lists, bitmaps, ordinals, sizeClass, nameBytes } = this.#parts;
    let bytes = [...bitmaps.values()].reduce((sum, bits) => sum + bits.byteLength, nameBytes);
    for (const array of [frequencies, offsets, lists, ordinals, sizeClass, this.#shared, this.#touched]) {
      bytes += array.byteLength;
    }
    return this.size === 0 ? 0 : bytes / this.size;
  }

  /**
   * The `topK` chunks of the highest scores, best first, then by ordinal. None that shares nothing.
   * @param query distinct identifiers.
   */
  search(query: readonly string[], scoring: Scoring, topK: number, excluded?: Range): Hit[] {
    if (topK < 1) return [];
    const terms = this.#terms(query, scoring);
    // rest[i]: the weights of terms[i] and all after it.
    const rest = new Array<number>(terms.length + 1).fill(0);
    for (let i = terms.length - 1; i >= 0; i--) rest[i] = rest[i + 1]! + terms[i]!.weight;
    const { missed, reached } = this.#accumulate(terms, rest, scoring, topK, excluded);
    return this.#complete(terms, rest, missed, scoring, topK, reached, excluded);
  }

  #terms(query: readonly string[], scoring: Scoring): Term[] {
    const { ids, frequencies, offsets, lists, bitmaps } = this.#parts;
    const terms: Term[] = [];
    for (const token of query) {
      const id = ids.get(token);
      if (id === undefined) continue;
      const frequency = frequencies[id]!;
      const list = lists.subarray(offsets[id]!, offsets[id + 1]!);
      terms.push({ frequency, weight: scoring.weight(frequency), bits: bitmaps.get(id), list });
    }
    return terms.sort((a, b) => a.frequency - b.frequency);
  }

  /**
   * Walks the lists, each only over the sizes at which a chunk not seen before could still be of the best.
   * @returns by size: the first term whose list was not walked there; and a score that `topK` chunks reach.
   */
  #accumulate(terms: readonly Term[], rest: readonly number[], scoring: Scoring, topK: number, excluded?: Range) {
    const { sizes, classStart } = this.#parts;
    const missed = new Uint32Array(sizes.length).fill(terms.length);
    let reached = Number.NEGATIVE_INFINITY;
    let [low, high] = [0, sizes.length];
    for (const [i, term] of terms.entries()) {
      // A look at what is reached costs a pass over the chunks touched, and may save one over this list.
      if (this.#touchedCount >= topK && term.frequency > this.#touchedCount) {
        reached = Math.max(reached, this.#reached(terms, i, scoring, topK, excluded));
      }
      while (low < high && scoring.score(rest[i]!, sizes[low]!) < reached) missed[low++] = i;
      while (low < high && scoring.score(rest[i]!, sizes[high - 1]!) < reached) missed[--high] = i;
      if (low === high) break;
      this.#walk(term, classStart[low]!, classStart[high]!);
    }
    return { missed, reached };
  }

  /** Adds a term's weight to the chunks that hold it, from number `start` to before `end`. */
  #walk({ list, bits, weight }: Term, start: number, end: number): void {
    const shared = this.#shared;
    const touched = this.#touched;
    let count = this.#touchedCount;
    if (bits === undefined) {
      const last = lowerBound(list, end);
      for (let p = lowerBound(list, start); p < last; p++) {
        const chunk = list[p]!;
        if (shared[chunk] === 0) touched[count++] = chunk;
        shared[chunk]! += weight;
      }
    } else {
      for (let at = start >>> 5; at << 5 < end; at++) {
        for (let word: number = bits[at]!; word !== 0; word &= word - 1) {
          const chunk = (at << 5) | (31 - Math.clz32(word & -word));
          if (chunk < start || chunk >= end) continue;
          if (shared[chunk] === 0) touched[count++] = chunk;
          shared[chunk]! += weight;
        }
      }
    }
    this.#touchedCount = count;
  }

  /** A score that `topK` chunks reach: the whole scores of those that are best by what has been counted so far. */
  #reached(terms: readonly Term[], next: number, scoring: Scoring, topK: number, excluded?: Range): number {
    const { sizes, sizeClass, ordinals } = this.#parts;
    const leading = new TopHits(SAMPLE * topK);
    for (let i = 0; i < this.#touchedCount; i++) {
      const chunk = this.#touched[i]!;
      leading.add(scoring.score(this.#shared[chunk]!, sizes[sizeClass[chunk]!]!), chunk);
    }
    const best = new TopHits(topK, excluded);
    for (const { ordinal: chunk } of leading.hits) {
      let sum = this.#shared[chunk]!;
      for (let term = next; term < terms.length; term++) {
        if (holds(terms[term]!, chunk)) sum += terms[term]!.weight;
      }
      best.add(scoring.score(sum, sizes[sizeClass[chunk]!]!), ordinals[chunk]!);
    }
    return best.threshold;
  }

  /** Adds what the walks left out, for the chunks that may be of the best; forgets the query. */
  #complete(
    terms: readonly Term[],
    rest: readonly number[],
    missed: Uint32Array,
    scoring: Scoring,
    topK: number,
    reached: number,
    excluded?: Range,
  ): Hit[] {
    const { sizes, sizeClass, ordinals } = this.#parts;
    const best = new TopHits(topK, excluded);
    let threshold = reached;
    for (let i = 0; i < this.#touchedCount; i++) {
      const chunk = this.#touched[i]!;
      let sum = this.#shared[chunk]!;
      this.#shared[chunk] = 0;
      const size = sizes[sizeClass[chunk]!]!;
      let term = missed[sizeClass[chunk]!]!;
      while (term < terms.length && scoring.score(sum + rest[term]!, size) >= threshold) {
        if (holds(terms[term]!, chunk)) sum += terms[term]!.weight;
        term++;
      }
      if (term < terms.length) continue;
      best.add(scoring.score(sum, size), ordinals[chunk]!);
      threshold = Math.max(reached, best.threshold);
    }
    this.#touchedCount = 0;
    return best.hits;
  }
}

function holds({ bits, list }: Term, chunk: number): boolean {
  if (bits !== undefined) return ((bits[chunk >>> 5]! >>> (chunk & 31)) & 1) === 1;
  return list[lowerBound(list, chunk)] === chunk;
}

/** Index of the first value of an ascending list that is not below `value`. */
function lowerBound(list: Uint32Array, value: number): number {
  let [low, high] = [0, list.length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (list[middle]! < value) low = middle + 1;
    else high = middle;
  }
  return low;
}
