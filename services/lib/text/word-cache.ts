/** Caches the ids of words in two generations: a word that was not used while one generation filled is forgotten. */

/** Memory for one generation, in bytes: some 60,000 words of code. */
const GENERATION_BYTES = 8 * 1024 * 1024;
/** Longer words are not cached: they rarely occur twice. (Long indentation and rulers come in parts of this length.) */
const LONGEST_WORD = 128;
/** Memory that a word takes besides its characters and ids: its place in the map, and the heads of string and list. */
const OVERHEAD_BYTES = 112;

export class WordCache {
  #young = new Map<string, readonly number[]>();
  #old = new Map<string, readonly number[]>();
  /** Memory of the young generation, in bytes. */
  #bytes = 0;

  /** Words that are cached. */
  get size(): number {
    return this.#young.size + this.#old.size;
  }

  get(word: string): readonly number[] | undefined {
    const ids = this.#young.get(word);
    if (ids !== undefined) return ids;
    const old = this.#old.get(word);
    if (old !== undefined) {
      this.#old.delete(word);
      this.put(word, old);
    }
    return old;
  }

  put(word: string, ids: readonly number[]): void {
    if (word.length > LONGEST_WORD) return;
    const bytes = OVERHEAD_BYTES + 2 * word.length + 8 * ids.length;
    if (this.#bytes + bytes > GENERATION_BYTES) {
      this.#old = this.#young;
      this.#young = new Map();
      this.#bytes = 0;
    }
    this.#bytes += bytes;
    // The key is a copy, since a slice would keep the whole text in memory from which it was cut.
    this.#young.set(Buffer.from(word, 'utf16le').toString('utf16le'), ids);
  }
}
