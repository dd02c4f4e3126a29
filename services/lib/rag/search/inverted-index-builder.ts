/** Builds an {@link InvertedIndex} from chunks that come one by one. */
import { InvertedIndex, NO_COPY } from './inverted-index.ts';

/** The part of a chunk that the index needs. */
export interface Indexable {
  readonly path: string;
  /** Distinct identifiers. */
  readonly tokens: readonly string[];
}

/** If more than 1 in 32 chunks are on a list of 32-bit numbers, a bitmap is smaller. */
const BITMAP_SHARE = 32;
/** Chunks that are laid out between two steps: about 1 ms. */
const CHUNKS_PER_STEP = 1_024;
/** Identifiers that are counted between two steps. */
const TOKENS_PER_STEP = 64 * 1_024;

/** A Map holds no more entries than this. */
const MAX_NAMES = 2 ** 24 - 1;

/** Memory that a name in a Map takes besides its letters, in bytes: measured at 45 to 58. */
const NAME_OVERHEAD = 50;

/** A copy that does not keep the longer text in memory from which the name was cut. */
const ownCopy = (name: string) => Buffer.from(name).toString();

/**
 * Collects chunks in the order of their ordinals, with all chunks of a path one after the other. {@link build} lays
 * them out.
 */
export class InvertedIndexBuilder {
  readonly #ids = new Map<string, number>();
  readonly #files = new Map<string, { readonly start: number; end: number }>();
  /** Identifier numbers of all chunks, back to back. */
  #tokens = new Uint32Array(1024);
  #tokenCount = 0;
  #nameBytes = 0;
  /** The end of each chunk's identifiers in `#tokens`. */
  readonly #ends: number[] = [];

  add({ path, tokens }: Indexable): void {
    const ordinal = this.#ends.length;
    const file = this.#files.get(path);
    if (file) file.end = ordinal + 1;
    else this.#files.set(this.#kept(path), { start: ordinal, end: ordinal + 1 });
    if (this.#tokenCount + tokens.length > this.#tokens.length) {
      const grown = new Uint32Array(2 * (this.#tokenCount + tokens.length));
      grown.set(this.#tokens);
      this.#tokens = grown;
    }
    for (const token of tokens) {
      const id = this.#ids.get(token) ?? this.#ids.size;
      if (id === MAX_NAMES) continue; // one name too many: it is never found
      if (id === this.#ids.size) this.#ids.set(this.#kept(token), id);
      this.#tokens[this.#tokenCount++] = id;
    }
    this.#ends.push(this.#tokenCount);
  }

  /** Adds a chunk of which nothing is known: no search by identifiers finds it. */
  skip(): void {
    this.#ends.push(this.#tokenCount);
  }

  /** Number of chunks so far. */
  get size(): number {
    return this.#ends.length;
  }

  /** A rough estimate of the memory that the chunks so far take until the index is built. It takes less then. */
  get bytes(): number {
    return this.#nameBytes + this.#tokenCount * 2 * 4 + this.#ends.length * 2 * 20;
  }

  #kept(name: string): string {
    this.#nameBytes += name.length + NAME_OVERHEAD;
    return ownCopy(name);
  }

  *build(): Generator<void, InvertedIndex> {
    const order = yield* this.#bySize();
    const earlierCopy = yield* this.#copies();
    const postings = yield* this.#postings(order.ordinals);
    return new InvertedIndex({
      ids: this.#ids,
      files: this.#files,
      nameBytes: this.#nameBytes,
      earlierCopy,
      ...order,
      ...postings,
    });
  }

  #bounds(ordinal: number): readonly [number, number] {
    return [ordinal === 0 ? 0 : this.#ends[ordinal - 1]!, this.#ends[ordinal]!];
  }

  /** Finds for each chunk the last one before it with the same identifiers in the same order, by a hash table. */
  *#copies(): Generator<void, Int32Array> {
    const chunks = this.#ends.length;
    const earlierCopy = new Int32Array(chunks).fill(NO_COPY);
    // A power of two, so that a mask does for the remainder, and at most half full, so that chains stay short.
    const table = new Int32Array(2 ** Math.ceil(Math.log2(2 * chunks + 1))).fill(NO_COPY);
    for (let ordinal = 0; ordinal < chunks; ordinal++) {
      if (ordinal % CHUNKS_PER_STEP === 0) yield;
      let at = this.#hash(ordinal) & (table.length - 1);
      while (table[at] !== NO_COPY && !this.#isCopy(ordinal, table[at]!)) at = (at + 1) & (table.length - 1);
      earlierCopy[ordinal] = table[at]!;
      table[at] = ordinal;
    }
    return earlierCopy;
  }

  /** A hash of a chunk's identifiers in their order. Multiplying mixes into higher bits, shifting into lower ones. */
  #hash(ordinal: number): number {
    const [start, end] = this.#bounds(ordinal);
    let hash = end - start;
    for (let i = start; i < end; i++) {
      hash = Math.imul(hash ^ this.#tokens[i]!, 0x9e3779b1);
      hash ^= hash >>> 15;
    }
    return hash;
  }

  #isCopy(ordinal: number, other: number): boolean {
    const [start, end] = this.#bounds(ordinal);
    const [otherStart, otherEnd] = this.#bounds(other);
    if (end - start !== otherEnd - otherStart) return false;
    for (let i = start, j = otherStart; i < end; i++, j++) if (this.#tokens[i] !== this.#tokens[j]) return false;
    return true;
  }

  /** Numbers chunks by size, and those of equal size by ordinal. */
  *#bySize() {
    const counts = new Map<number, number>();
    const sizeOf = new Uint32Array(this.#ends.length);
    for (let ordinal = 0; ordinal < sizeOf.length; ordinal++) {
      if (ordinal % CHUNKS_PER_STEP === 0) yield;
      const [start, end] = this.#bounds(ordinal);
      counts.set(end - start, (counts.get(end - start) ?? 0) + 1);
      sizeOf[ordinal] = end - start;
    }
    const sizes = Uint32Array.from(counts.keys()).sort();
    const classStart = new Uint32Array(sizes.length + 1);
    const classOfSize = new Map<number, number>();
    for (const [c, size] of sizes.entries()) {
      classOfSize.set(size, c);
      classStart[c + 1] = classStart[c]! + counts.get(size)!;
    }
    const next = classStart.slice();
    const ordinals = new Uint32Array(sizeOf.length);
    const sizeClass = new Uint32Array(sizeOf.length);
    for (const [ordinal, size] of sizeOf.entries()) {
      if (ordinal % CHUNKS_PER_STEP === 0) yield;
      const c = classOfSize.get(size)!;
      const chunk = next[c]!++;
      ordinals[chunk] = ordinal;
      sizeClass[chunk] = c;
    }
    return { sizes, sizeClass, classStart, ordinals };
  }

  *#postings(ordinals: Uint32Array) {
    const frequencies = new Uint32Array(this.#ids.size);
    for (let i = 0; i < this.#tokenCount; i++) {
      if (i % TOKENS_PER_STEP === 0) yield;
      frequencies[this.#tokens[i]!]!++;
    }
    const bitmaps = new Map<number, Uint32Array>();
    const offsets = new Uint32Array(frequencies.length + 1);
    for (const [id, frequency] of frequencies.entries()) {
      if (id % TOKENS_PER_STEP === 0) yield;
      const frequent = frequency * BITMAP_SHARE > ordinals.length;
      if (frequent) bitmaps.set(id, new Uint32Array(Math.ceil(ordinals.length / 32)));
      offsets[id + 1] = offsets[id]! + (frequent ? 0 : frequency);
    }
    const lists = new Uint32Array(offsets[frequencies.length]!);
    const next = offsets.slice();
    for (const [chunk, ordinal] of ordinals.entries()) {
      if (chunk % CHUNKS_PER_STEP === 0) yield;
      const [start, end] = this.#bounds(ordinal);
      for (let i = start; i < end; i++) {
        const id = this.#tokens[i]!;
        const bits = bitmaps.get(id);
        if (bits) bits[chunk >>> 5]! |= 1 << (chunk & 31);
        else lists[next[id]!++] = chunk;
      }
    }
    return { frequencies, offsets, lists, bitmaps };
  }
}
