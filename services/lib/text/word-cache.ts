/** Ids by word, in two generations: what was not used while one generation filled is forgotten. */
export class WordCache {
  static readonly #WORDS = 32_768;
  /** Longer ones are rarely met twice; of indentation and rulers, parts are. */
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
    // A copy: a slice would keep the whole text that it was cut from in memory.
    this.#young.set(Buffer.from(word, 'utf16le').toString('utf16le'), ids);
  }
}
