/**
 * The best by cosine among hundreds of thousands of embeddings. One bit per dimension of each is compared with the
 * query first, which reads a 32nd of the memory; the half percent that seem best are compared in full.
 *
 * The bits are the signs of an embedding after the mean has been taken from it and a random rotation, by which no
 * dimension has more to say than another. From them the product with a query is estimated without bias: RaBitQ, Gao and
 * Long, SIGMOD 2024. So a search may miss one of the best: `bench recall` says how often.
 */
import { inTurns, Turns } from '../../async/turns.ts';
import { CODE_STEP, CodeScan, MOST_BITS, QUERY_BITS } from './code-scan.ts';
import { type EmbeddingIndex, normalized, roundedProduct } from './dense.ts';
import type { SearchHow } from './inverted-index.ts';
import { type Excludes, type Hit, TopHits } from './top-hits.ts';

/** Codes of one scan, which takes less than 1 ms. */
const BLOCK = 16_384;
/** Rows that are coded between two looks at the clock. */
const CODED_PER_STEP = 64;
/**
 * Share of the embeddings that are compared in full, and the least number, also for each hit that is wanted. Of 450,
 * 900 and 1900 code chunks in the encodings of tiny-coder, 45, 80 and 95 must be compared to find 99 % of the ten best:
 * about as the square root grows, which makes 970 of 200,000 and 2,200 of a million.
 */
const COMPARED = { share: 0.005, least: 4_000, perHit: 20 } as const;
/** Share of these that a search may leave out before it looks further: a file's own chunks are often among the best. */
const FEW_LEFT_OUT = 0.1;
/** Of errors that are normal, one in 700 is larger than three times their root mean square, in one direction. */
const SURE = 3;
/** Estimates are counted in so many classes to find those that are compared. */
const CLASSES = 4_096;
const HIGHEST_LEVEL = 2 ** QUERY_BITS - 1;

/** Bits of a code: a power of two, as the rotation needs it. */
const bitsOf = (dim: number) => Math.max(CODE_STEP, 2 ** Math.ceil(Math.log2(dim)));

/**
 * From so many embeddings on an index is coded. With fewer the exact search (dense.ts) is quick enough: 7 ms with
 * 100,000 of 256 dimensions.
 */
const CODED_FROM = 200_000;
export const isCoded = (chunks: number, dim: number) => chunks >= CODED_FROM && bitsOf(dim) <= MOST_BITS;

/** Memory of an index, in bytes. */
export const codedBytes = (chunks: number, dim: number) => chunks * (4 * dim + bitsOf(dim) / 8 + 6);

export class CodedIndex implements EmbeddingIndex {
  readonly dim: number;
  readonly #chunks: number;
  readonly #embeddings: Float32Array;
  /** [dim] */
  readonly #mean: Float64Array;
  readonly #rotation: Rotation;
  readonly #scan: CodeScan;
  /** [chunks]: by what the sum over the signs is multiplied; NaN without an embedding. */
  readonly #factors: Float32Array;
  /** [chunks]: bits that are set. */
  readonly #counts: Uint16Array;

  /**
   * @param chunks number of embeddings. Those that are not {@link set} are never found.
   * @throws RangeError where there is no memory for the codes in one piece.
   */
  constructor(chunks: number, dim: number) {
    this.dim = dim;
    this.#chunks = chunks;
    this.#rotation = new Rotation(bitsOf(dim));
    this.#scan = new CodeScan(chunks, this.#rotation.bits, BLOCK);
    this.#embeddings = new Float32Array(chunks * dim);
    this.#mean = new Float64Array(dim);
    this.#factors = new Float32Array(chunks).fill(Number.NaN);
    this.#counts = new Uint16Array(chunks);
  }

  set(ordinal: number, embedding: Float32Array): void {
    this.#embeddings.set(normalized(embedding), ordinal * this.dim);
    this.#factors[ordinal] = 0;
  }

  finish(signal?: AbortSignal): Promise<void> {
    return inTurns(this.#encode(), signal);
  }

  *#encode(): Generator<void, void> {
    const { dim } = this;
    const mean = this.#mean;
    for (let i = 0; i < this.#chunks; i++) {
      if (i % CODED_PER_STEP === 0) yield;
      const start = i * dim;
      for (let j = 0; j < dim; j++) mean[j]! += this.#embeddings[start + j]! / this.#chunks;
    }
    const rest = new Float64Array(this.#rotation.bits);
    for (let i = 0; i < this.#chunks; i++) {
      if (i % CODED_PER_STEP === 0) yield;
      if (Number.isNaN(this.#factors[i]!)) continue;
      rest.fill(0);
      for (let j = 0; j < dim; j++) rest[j] = this.#embeddings[i * dim + j]! - mean[j]!;
      this.#rotation.apply(rest);
      this.#code(i, rest);
    }
  }

  /** @param rest the rotated embedding without the mean. */
  #code(ordinal: number, rest: Float64Array): void {
    const start = (ordinal * rest.length) / 8;
    const { codes } = this.#scan;
    let [square, sizes, count] = [0, 0, 0];
    for (let i = 0; i < rest.length; i++) {
      const value = rest[i]!;
      square += value * value;
      sizes += Math.abs(value);
      if (value <= 0) continue;
      codes[start + (i >> 3)]! |= 1 << (i & 7);
      count++;
    }
    // The product with the signs, times this, is that with the rest: exactly so for a query that is the rest itself.
    this.#factors[ordinal] = sizes === 0 ? 0 : square / sizes;
    this.#counts[ordinal] = count;
  }

  async search(query: Float32Array, topK: number, how: SearchHow = {}): Promise<Hit[]> {
    if (topK < 1 || this.#chunks === 0) return [];
    const unit = normalized(query);
    const estimates = new Float32Array(this.#chunks);
    const { lowest, highest } = await this.#estimate(unit, estimates, how.signal);
    let offset = 0;
    for (let i = 0; i < unit.length; i++) offset += unit[i]! * this.#mean[i]!;
    const wanted = Math.max(COMPARED.share * this.#chunks, COMPARED.least, COMPARED.perHit * topK);
    const classes = new Classes(estimates, lowest, highest);
    const compared: Compared = { best: new TopHits(topK), leftOut: 0, count: 0, squares: 0 };
    for (let [reach, below] = [wanted, Number.POSITIVE_INFINITY]; ; ) {
      const { threshold, reached } = classes.reachedBy(reach);
      await inTurns(this.#compare(unit, { estimates, threshold, below, offset }, compared, how.excludes), how.signal);
      if (threshold <= lowest || isEnough(compared, wanted, threshold + offset)) return compared.best.hits;
      [reach, below] = [2 * reached, threshold];
    }
  }

  /** Estimates of all products, up to a number that is the same for all; NaN without an embedding. */
  async #estimate(query: Float32Array, estimates: Float32Array, signal: AbortSignal | undefined) {
    const levels = new Float64Array(this.#rotation.bits);
    levels.set(query);
    this.#rotation.apply(levels);
    const { least, step, sum, planes } = planesOf(levels);
    const [factors, counts] = [this.#factors, this.#counts];
    const turns = new Turns();
    let [lowest, highest] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
    for (let start = 0; start < this.#chunks; start += BLOCK) {
      if (turns.over) await turns.next(signal);
      const end = Math.min(start + BLOCK, this.#chunks);
      this.#scan.planes.set(planes); // another search may have had this turn
      const sums = this.#scan.sums(start, end);
      for (let i = start; i < end; i++) {
        // The query's sum where signs are positive, twice, without its sum over all: its product with the signs.
        const estimate = factors[i]! * (2 * (step * sums[i - start]! + least * counts[i]!) - sum);
        estimates[i] = estimate;
        if (estimate < lowest) lowest = estimates[i]!;
        if (estimate > highest) highest = estimates[i]!;
      }
    }
    return { lowest, highest };
  }

  /** Compares in full what the search does not leave out. */
  *#compare(
    query: Float32Array,
    { estimates, threshold, below, offset }: Among,
    compared: Compared,
    excludes: Excludes = () => false,
  ): Generator<void, void> {
    let looked = 0;
    for (let i = 0; i < this.#chunks; i++) {
      if ((i + 1) % BLOCK === 0) yield;
      if (!(estimates[i]! >= threshold && estimates[i]! < below)) continue;
      if (++looked % CODED_PER_STEP === 0) yield;
      if (excludes(i)) {
        compared.leftOut++;
        continue;
      }
      const product = roundedProduct(this.#embeddings, i * this.dim, query);
      compared.count++;
      compared.squares += (product - estimates[i]! - offset) ** 2;
      compared.best.add(product, i);
    }
  }
}

/** The chunks with an estimate of at least `threshold` that is less than `below`. */
interface Among {
  readonly estimates: Float32Array;
  readonly threshold: number;
  readonly below: number;
  /** What an estimate lacks of its product, the same for all. */
  readonly offset: number;
}

/** What a search has compared so far. */
interface Compared {
  readonly best: TopHits;
  /** Chunks that it leaves out, and those that it has compared in full. */
  leftOut: number;
  count: number;
  /** Sum of the squared errors of estimates. */
  squares: number;
}

/**
 * Whether hardly any chunk that was not compared is among the best. Where those that seem best are compared, their
 * number tells. Where a search leaves many of them out, the best of the others are in the midst of many that are nearly
 * as good: then none with a lower estimate may reach the hits, by {@link SURE} errors of an estimate.
 * @param reached product of those with the lowest estimate so far.
 */
function isEnough({ best, leftOut, count, squares }: Compared, wanted: number, reached: number): boolean {
  if (leftOut <= FEW_LEFT_OUT * wanted) return true;
  return best.threshold >= reached + SURE * Math.sqrt(squares / Math.max(1, count));
}

/** How many estimates there are in each of {@link CLASSES} equal ranges. */
class Classes {
  readonly #lowest: number;
  readonly #scale: number;
  readonly #counts = new Uint32Array(CLASSES);

  constructor(estimates: Float32Array, lowest: number, highest: number) {
    this.#lowest = lowest;
    this.#scale = (CLASSES - 1) / (highest - lowest);
    if (!Number.isFinite(this.#scale)) return;
    // NaN counts as the lowest. By index, because an iterator over a million numbers takes as long as the scan.
    for (let i = 0; i < estimates.length; i++) this.#counts[((estimates[i]! - lowest) * this.#scale) | 0]!++;
  }

  /** @returns an estimate that about `wanted` of them reach, the lowest if there are no more; and how many do. */
  reachedBy(wanted: number): { readonly threshold: number; readonly reached: number } {
    let [at, reached] = [Number.isFinite(this.#scale) ? CLASSES : 0, 0];
    while (at > 0 && reached < wanted) reached += this.#counts[--at]!;
    return { threshold: at === 0 ? this.#lowest : this.#lowest + at / this.#scale, reached };
  }
}

/** Levels of a rotated query, from 0 to 15: value i is about least + step x level i. */
function planesOf(values: Float64Array) {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const step = (most - least) / HIGHEST_LEVEL || 1;
  const planeBytes = values.length / 8;
  const planes = new Uint8Array(QUERY_BITS * planeBytes);
  let sum = 0;
  for (const [i, value] of values.entries()) {
    sum += value;
    const level = Math.round((value - least) / step);
    for (let j = 0; j < QUERY_BITS; j++) planes[j * planeBytes + (i >> 3)]! |= ((level >> j) & 1) << (i & 7);
  }
  return { least, step, sum, planes };
}

/** A rotation that is drawn once and for all: signs, then a Hadamard transform. */
class Rotation {
  readonly bits: number;
  /** 1 or -1, divided by the growth of the transform. */
  readonly #signs: Float64Array;

  constructor(bits: number) {
    this.bits = bits;
    let state = 1;
    this.#signs = Float64Array.from({ length: bits }, () => {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
      return (state >= 2 ** 31 ? 1 : -1) / Math.sqrt(bits);
    });
  }

  /** Rotates in place. */
  apply(values: Float64Array): void {
    for (let i = 0; i < this.bits; i++) values[i]! *= this.#signs[i]!;
    for (let half = 1; half < this.bits; half *= 2) {
      for (let start = 0; start < this.bits; start += 2 * half) {
        for (let i = start; i < start + half; i++) {
          const [a, b] = [values[i]!, values[i + half]!];
          values[i] = a + b;
          values[i + half] = a - b;
        }
      }
    }
  }
}
