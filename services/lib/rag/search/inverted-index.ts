/**
 * Exact top-k over identifier sets: an inverted index in memory that stops early.
 *
 * The score of a chunk depends on the identifiers that it shares with the query, and on its size. Inside the index
 * chunks are numbered by their size, so a bound on the size is a slice of every posting list. Rare identifiers come
 * first. Once no chunk that has shared nothing so far could reach the best k, the other lists are not walked, and the
 * few chunks that still can are completed one by one. An identifier that more than 1 in 32 chunks hold (`self`,
 * `return`, `import`, which would take most of the time) is stored as a bitmap, which is smaller than its list and
 * quick to look a chunk up in.
 *
 * A search is done in turns of the event loop, since whoever uploads chooses how large an index is.
 */
import { inTurns } from '../../async/turns.ts';
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

/** Postings, or chunks and lookups, between two steps of a search: at most 1 ms. */
const STEP = 4_096;
/** Chunks of a bitmap between two steps. */
const BITS_STEP = 32 * 1_024;

const NO_CHUNKS: ChunkRange = { start: 0, end: 0 };

/** An identifier of the query, with the chunks that hold it: a bitmap, or an ascending list of their inner numbers. */
interface Term {
  readonly frequency: number;
  readonly weight: number;
  readonly bits: Uint32Array | undefined;
  readonly list: Uint32Array;
}

/** One search. */
interface Asked {
  /** Ascending by frequency. */
  readonly terms: readonly Term[];
  /** By term: the sum of its weight and of those after it. */
  readonly rest: readonly number[];
  readonly scoring: Scoring;
  readonly topK: number;
  readonly excludes: Excludes | undefined;
}

export interface SearchHow {
  /** The chunks that are left out (see InvertedIndex.excluding). */
  readonly excludes?: Excludes | undefined;
  /** Aborted when nobody waits for the hits any more. */
  readonly signal?: AbortSignal | undefined;
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
  /** The search that has the counters, or that waits for them last. */
  #previous: Promise<unknown> = Promise.resolve();

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
   * @param replaced files of which the client has sent a newer text: their chunks are left out as well.
   */
  excluding(path?: string, replaced: readonly string[] = []): Excludes {
    const { earlierCopy, files } = this.#parts;
    const left = [...replaced, ...(path === undefined ? [] : [path])].map((name) => files.get(name) ?? NO_CHUNKS);
    const isEdited = (ordinal: number) => left.some(({ start, end }) => ordinal >= start && ordinal < end);
    return (ordinal) => {
      if (isEdited(ordinal)) return true;
      let copy = earlierCopy[ordinal]!;
      while (copy !== NO_COPY && isEdited(copy)) copy = earlierCopy[copy]!;
      return copy !== NO_COPY;
    };
  }

  /** The ordinals of a file's chunks; undefined for a file that has none. */
  rangeOf(path: string): ChunkRange | undefined {
    return this.#parts.files.get(path);
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
   * Searches of one index come one after the other, because they share its counters.
   * @param query distinct identifiers.
   * @throws the signal's reason.
   */
  search(query: readonly string[], scoring: Scoring, topK: number, how: SearchHow = {}): Promise<Hit[]> {
    const found = this.#previous.then(() => {
      how.signal?.throwIfAborted();
      return inTurns(this.#steps(query, scoring, topK, how.excludes), how.signal);
    });
    this.#previous = found.catch(() => {});
    return found;
  }

  *#steps(query: readonly string[], scoring: Scoring, topK: number, excludes?: Excludes): Generator<void, Hit[]> {
    if (topK < 1) return [];
    const terms = this.#terms(query, scoring);
    const rest = new Array<number>(terms.length + 1).fill(0);
    for (let i = terms.length - 1; i >= 0; i--) rest[i] = rest[i + 1]! + terms[i]!.weight;
    const asked: Asked = { terms, rest, scoring, topK, excludes };
    try {
      const { missed, reached } = yield* this.#accumulate(asked);
      return yield* this.#complete(asked, missed, reached);
    } finally {
      if (this.#touchedCount > 0) this.#shared.fill(0); // it was given up
      this.#touchedCount = 0;
    }
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
  *#accumulate(asked: Asked): Generator<void, { missed: Uint32Array; reached: number }> {
    const { terms, rest, scoring, topK } = asked;
    const { sizes, classStart } = this.#parts;
    const missed = new Uint32Array(sizes.length).fill(terms.length);
    let reached = Number.NEGATIVE_INFINITY;
    let [low, high] = [0, sizes.length];
    for (const [i, term] of terms.entries()) {
      // Finding out what is reached costs a pass over the touched chunks, and may save one over this list.
      if (this.#touchedCount >= topK && term.frequency > this.#touchedCount) {
        reached = Math.max(reached, yield* this.#reached(asked, i));
      }
      while (low < high && scoring.score(rest[i]!, sizes[low]!) < reached) missed[low++] = i;
      while (low < high && scoring.score(rest[i]!, sizes[high - 1]!) < reached) missed[--high] = i;
      if (low === high) break;
      yield* this.#walk(term, classStart[low]!, classStart[high]!);
    }
    return { missed, reached };
  }

  /** Adds a term's weight to the chunks that hold it, from inner number `start` to before `end`. */
  *#walk(term: Term, start: number, end: number): Generator<void, void> {
    if (term.bits === undefined) {
      const last = lowerBound(term.list, end);
      for (let p = lowerBound(term.list, start); p < last; p += STEP) {
        this.#walkList(term, p, Math.min(p + STEP, last));
        yield;
      }
    } else {
      for (let at = start; at < end; at += BITS_STEP) {
        this.#walkBits(term.bits, term.weight, at, Math.min(at + BITS_STEP, end));
        yield;
      }
    }
  }

  #walkList({ list, weight }: Term, first: number, last: number): void {
    const shared = this.#shared;
    const touched = this.#touched;
    let count = this.#touchedCount;
    for (let p = first; p < last; p++) {
      const chunk = list[p]!;
      if (shared[chunk] === 0) touched[count++] = chunk;
      shared[chunk]! += weight;
    }
    this.#touchedCount = count;
  }

  #walkBits(bits: Uint32Array, weight: number, start: number, end: number): void {
    const shared = this.#shared;
    const touched = this.#touched;
    let count = this.#touchedCount;
    for (let at = start >>> 5; at << 5 < end; at++) {
      for (let word: number = bits[at]!; word !== 0; word &= word - 1) {
        const chunk = (at << 5) | (31 - Math.clz32(word & -word));
        if (chunk < start || chunk >= end) continue;
        if (shared[chunk] === 0) touched[count++] = chunk;
        shared[chunk]! += weight;
      }
    }
    this.#touchedCount = count;
  }

  /** A score that `topK` chunks reach: computed in full for those that are best by what has been counted so far. */
  *#reached({ terms, scoring, topK, excludes }: Asked, next: number): Generator<void, number> {
    const { sizes, sizeClass, ordinals } = this.#parts;
    const leading = new TopHits(SAMPLE * topK, excludes && ((chunk) => excludes(ordinals[chunk]!)));
    for (let start = 0; start < this.#touchedCount; start += STEP) {
      this.#lead(leading, scoring, start, Math.min(start + STEP, this.#touchedCount));
      yield;
    }
    const best = new TopHits(topK);
    let left = STEP;
    for (const { ordinal: chunk } of leading.hits) {
      let sum = this.#shared[chunk]!;
      for (let term = next; term < terms.length; term++) {
        if (holds(terms[term]!, chunk)) sum += terms[term]!.weight;
      }
      best.add(scoring.score(sum, sizes[sizeClass[chunk]!]!), ordinals[chunk]!);
      left -= terms.length - next;
      if (left > 0) continue;
      yield;
      left = STEP;
    }
    return best.threshold;
  }

  #lead(leading: TopHits, scoring: Scoring, first: number, last: number): void {
    const { sizes, sizeClass } = this.#parts;
    for (let i = first; i < last; i++) {
      const chunk = this.#touched[i]!;
      leading.add(scoring.score(this.#shared[chunk]!, sizes[sizeClass[chunk]!]!), chunk);
    }
  }

  /** Adds what the walks left out, for the chunks that may be among the best, and resets the counters. */
  *#complete(asked: Asked, missed: Uint32Array, reached: number): Generator<void, Hit[]> {
    const best = new TopHits(asked.topK, asked.excludes);
    for (let i = 0; i < this.#touchedCount; ) {
      i = this.#completeFrom(i, asked, missed, reached, best);
      yield;
    }
    this.#touchedCount = 0;
    return best.hits;
  }

  /** Completes touched chunks from the `first` on, as many as a step allows. @returns the next one. */
  #completeFrom(first: number, asked: Asked, missed: Uint32Array, reached: number, best: TopHits): number {
    const { terms, rest, scoring } = asked;
    const { sizes, sizeClass, ordinals } = this.#parts;
    let threshold = Math.max(reached, best.threshold);
    let i = first;
    for (let left = STEP; left > 0 && i < this.#touchedCount; i++, left--) {
      const chunk = this.#touched[i]!;
      let sum = this.#shared[chunk]!;
      this.#shared[chunk] = 0;
      const size = sizes[sizeClass[chunk]!]!;
      let term = missed[sizeClass[chunk]!]!;
      while (term < terms.length && scoring.score(sum + rest[term]!, size) >= threshold) {
        if (holds(terms[term]!, chunk)) sum += terms[term]!.weight;
        term++;
        left--;
      }
      if (term < terms.length) continue;
      best.add(scoring.score(sum, size), ordinals[chunk]!);
      threshold = Math.max(reached, best.threshold);
    }
    return i;
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
