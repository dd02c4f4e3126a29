/**
 * Exact top-k over identifier sets: an inverted index in memory that stops early.
 *
 * The score of a chunk depends on the identifiers that it shares with the query, and on its size. Inside the index
 * chunks are numbered by their size, so a bound on the size is a slice of every posting list. Rare identifiers come
 * first. Once no chunk that has shared nothing so far could reach the best k, the other lists are not walked, and the
 * few chunks that still can are completed one by one. An identifier that more than 1 in 32 chunks hold (`self`,
 * `return`, `import`, which would take most of the time) is stored as a bitmap, which is smaller than its list and
 * quick to look a chunk up in.
 */
import { type Excludes, type Hit, TopHits } from './top-hits.ts';

/**
 * How shared identifiers make a score. Weights are whole numbers, so that sums, and thus ties, are exact in any order.
 */
export interface Scoring {
  /** @param frequency number of chunks that hold the identifier. */
  weight(frequency: number): number;
  /**
   * @param shared summed weights of the identifiers in common. The score rises with it.
   * @param size number of identifiers in the chunk.
   */
  score(shared: number, size: number): number;
}

/** To learn what score the top-k reach, this many times k chunks are looked at in full. */
const SAMPLE = 4;

const NO_CHUNKS: ChunkRange = { start: 0, end: 0 };

/** An identifier of the query, with the chunks that hold it: a bitmap, or an ascending list of their inner numbers. */
interface Term {
  readonly frequency: number;
  readonly weight: number;
  readonly bits: Uint32Array | undefined;
  readonly list: Uint32Array;
}

/** Chunks from `start` to before `end`, by their ordinals. */
interface ChunkRange {
  readonly start: number;
  readonly end: number;
}

/** In {@link InvertedIndexParts.earlierCopy}: there is none. */
export const NO_COPY = -1;

export interface InvertedIndexParts {
  readonly ids: ReadonlyMap<string, number>;
  /** The ordinals of a file's chunks, by path. */
  readonly files: ReadonlyMap<string, ChunkRange>;
  /** Memory that the names in both take. */
  readonly nameBytes: number;
  /** All sizes that occur, ascending. */
  readonly sizes: Uint32Array;
  /** Inner number → index of its size in `sizes`. */
  readonly sizeClass: Uint32Array;
  /** Index in `sizes` → first inner number of that size, and one more entry at the end. */
  readonly classStart: Uint32Array;
  /** Inner number → ordinal. */
  readonly ordinals: Uint32Array;
  /** Ordinal → the last chunk before it with the same identifiers in the same order, or {@link NO_COPY}. */
  readonly earlierCopy: Int32Array;
  /** Identifier → number of chunks that hold it. */
  readonly frequencies: Uint32Array;
  /** Identifier → start of its list in `lists`, and one more entry at the end. */
  readonly offsets: Uint32Array;
  readonly lists: Uint32Array;
  /** The identifiers that have a bitmap instead of a list. */
  readonly bitmaps: ReadonlyMap<number, Uint32Array>;
}

export class InvertedIndex {
  readonly #parts: InvertedIndexParts;
  /** Inner number → weights shared with the current query; all zero between two searches. */
  readonly #shared: Uint32Array;
  /** The first `#touchedCount` entries are the chunks that share something. */
  readonly #touched: Uint32Array;
  #touchedCount = 0;

  constructor(parts: InvertedIndexParts) {
    this.#parts = parts;
    this.#shared = new Uint32Array(parts.ordinals.length);
    this.#touched = new Uint32Array(parts.ordinals.length);
  }

  /** Number of chunks in the index. */
  get size(): number {
    return this.#parts.ordinals.length;
  }

  /** Average number of identifiers per chunk. */
  get averageSize(): number {
    const { sizes, classStart } = this.#parts;
    let sum = 0;
    for (let c = 0; c < sizes.length; c++) sum += sizes[c]! * (classStart[c + 1]! - classStart[c]!);
    return this.size === 0 ? 0 : sum / this.size;
  }

  /**
   * What a search leaves out: the chunks of the file being edited and, of the other chunks with the same identifiers in
   * the same order, all but the first. So however many copies of a text a repository has, they take one place.
   */
  excluding(path?: string): Excludes {
    const { earlierCopy, files } = this.#parts;
    const { start, end } = (path === undefined ? undefined : files.get(path)) ?? NO_CHUNKS;
    const isEdited = (ordinal: number) => ordinal >= start && ordinal < end;
    return (ordinal) => {
      if (isEdited(ordinal)) return true;
      let copy = earlierCopy[ordinal]!;
      while (copy !== NO_COPY && isEdited(copy)) copy = earlierCopy[copy]!;
      return copy !== NO_COPY;
    };
  }

  /** Memory per chunk, including the names of identifiers and files. */
  get bytesPerChunk(): number {
    const { frequencies, offsets, lists, bitmaps, ordinals, sizeClass, earlierCopy, nameBytes } = this.#parts;
    let bytes = [...bitmaps.values()].reduce((sum, bits) => sum + bits.byteLength, nameBytes);
    for (const array of [frequencies, offsets, lists, ordinals, sizeClass, earlierCopy, this.#shared, this.#touched]) {
      bytes += array.byteLength;
    }
    return this.size === 0 ? 0 : bytes / this.size;
  }

  /**
   * The `topK` chunks with the highest scores, best first, then by ordinal. A chunk that shares nothing is never found.
   * @param query distinct identifiers.
   */
  search(query: readonly string[], scoring: Scoring, topK: number, excludes?: Excludes): Hit[] {
    if (topK < 1) return [];
    const terms = this.#terms(query, scoring);
    // rest[i] is the sum of the weights of terms[i] and all terms after it.
    const rest = new Array<number>(terms.length + 1).fill(0);
    for (let i = terms.length - 1; i >= 0; i--) rest[i] = rest[i + 1]! + terms[i]!.weight;
    const { missed, reached } = this.#accumulate(terms, rest, scoring, topK, excludes);
    return this.#complete(terms, rest, missed, scoring, topK, reached, excludes);
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
   * Walks the lists, each only over the sizes at which a chunk not seen before could still be among the best.
   * @returns `missed`, by size: the first term whose list was not walked there; `reached`: a score that `topK` chunks
   *   reach.
   */
  #accumulate(terms: readonly Term[], rest: readonly number[], scoring: Scoring, topK: number, excludes?: Excludes) {
    const { sizes, classStart } = this.#parts;
    const missed = new Uint32Array(sizes.length).fill(terms.length);
    let reached = Number.NEGATIVE_INFINITY;
    let [low, high] = [0, sizes.length];
    for (const [i, term] of terms.entries()) {
      // Finding out what is reached costs a pass over the touched chunks, and may save one over this list.
      if (this.#touchedCount >= topK && term.frequency > this.#touchedCount) {
        reached = Math.max(reached, this.#reached(terms, i, scoring, topK, excludes));
      }
      while (low < high && scoring.score(rest[i]!, sizes[low]!) < reached) missed[low++] = i;
      while (low < high && scoring.score(rest[i]!, sizes[high - 1]!) < reached) missed[--high] = i;
      if (low === high) break;
      this.#walk(term, classStart[low]!, classStart[high]!);
    }
    return { missed, reached };
  }

  /** Adds a term's weight to the chunks that hold it, from inner number `start` to before `end`. */
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

  /** A score that `topK` chunks reach: computed in full for those that are best by what has been counted so far. */
  #reached(terms: readonly Term[], next: number, scoring: Scoring, topK: number, excludes?: Excludes): number {
    const { sizes, sizeClass, ordinals } = this.#parts;
    const leading = new TopHits(SAMPLE * topK, excludes && ((chunk) => excludes(ordinals[chunk]!)));
    for (let i = 0; i < this.#touchedCount; i++) {
      const chunk = this.#touched[i]!;
      leading.add(scoring.score(this.#shared[chunk]!, sizes[sizeClass[chunk]!]!), chunk);
    }
    const best = new TopHits(topK);
    for (const { ordinal: chunk } of leading.hits) {
      let sum = this.#shared[chunk]!;
      for (let term = next; term < terms.length; term++) {
        if (holds(terms[term]!, chunk)) sum += terms[term]!.weight;
      }
      best.add(scoring.score(sum, sizes[sizeClass[chunk]!]!), ordinals[chunk]!);
    }
    return best.threshold;
  }

  /** Adds what the walks left out, for the chunks that may be among the best, and resets the counters. */
  #complete(
    terms: readonly Term[],
    rest: readonly number[],
    missed: Uint32Array,
    scoring: Scoring,
    topK: number,
    reached: number,
    excludes?: Excludes,
  ): Hit[] {
    const { sizes, sizeClass, ordinals } = this.#parts;
    const best = new TopHits(topK, excludes);
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

/** The index of the first value in an ascending list that is not below `value`. */
function lowerBound(list: Uint32Array, value: number): number {
  let [low, high] = [0, list.length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (list[middle]! < value) low = middle + 1;
    else high = middle;
  }
  return low;
}
