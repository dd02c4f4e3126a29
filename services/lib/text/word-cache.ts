/** Caches the ids of words in two generations: a word that was not used while one generation filled is forgotten. */
export class WordCache {
  /** Words in one generation. */
  static readonly #WORDS = 32_768;
  /**
   * Longer words are not cached: they rarely occur twice. (Long indentation and rulers come in parts of this length.)
   */
  static readonly #LENGTH = 128;
  #young = new Map<string, readonly number[]>();
  #old = new Map<string, readonly number[]>();

  get(word: string): readonly number[] | undefined {
    const ids = this.#young.get(word);
    if (ids !== undefined) return ids;
    const old = this.#old.get(word);
    if (old !== undefined) this.put(word, old);
    return old;
  }

  put(word: string, ids: readonly number[]): void {
    if (word.length > WordCache.#LENGTH) return;
    if (this.#young.size >= WordCache.#WORDS) {
      this.#old = this.#young;
      this.#young = new Map();
    }
    // The key is a copy, since a slice would keep the whole text in memory from which it was cut.
    this.#young.set(Buffer.from(word, 'utf16le').toString('utf16le'), ids);
  }
}
