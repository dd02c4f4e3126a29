/**
 * Equal and nearly equal chunks take one place among the hits: vendored copies, generated variants, and windows of one
 * file that hardly differ would fill a prompt with one text.
 *
 * Exact copies never leave the index (see InvertedIndex.excluding). Near-copies are told here, by their identifiers.
 */

/**
 * Chunks are the same from this share of common identifiers on, |A∩B| / |A∪B|. Neighbouring windows share half of
 * their lines and are not meant: in the sample repository and six others half of them lie below 0.5 and nineteen in
 * twenty below 0.7 to 0.8, while a window of 25 identifiers in which two are renamed lies at 0.85. On the questions of
 * `bench recall`, 0.8 lost none of the chunks that are needed in any of the seven, and found more in two of them; at
 * 0.75 the first were lost, in the sample repository.
 */
const SAME = 0.8;

/** Keeps the first `limit` of the chunks that are added, best first, without those that are the same as one before. */
export class DistinctChunks<C extends { readonly tokens: readonly string[] }> {
  readonly kept: C[] = [];
  readonly #limit: number;
  /** The identifiers of the kept chunks. */
  readonly #tokens: ReadonlySet<string>[] = [];

  constructor(limit: number) {
    this.#limit = limit;
  }

  /** Number of chunks that are still wanted. */
  get missing(): number {
    return this.#limit - this.kept.length;
  }

  add(chunk: C): void {
    if (this.missing === 0 || this.#tokens.some((tokens) => same(tokens, chunk.tokens))) return;
    this.kept.push(chunk);
    this.#tokens.push(new Set(chunk.tokens));
  }
}

/** @param b distinct identifiers. */
function same(a: ReadonlySet<string>, b: readonly string[]): boolean {
  if (Math.min(a.size, b.length) < SAME * Math.max(a.size, b.length)) return false; // whatever they have in common
  let common = 0;
  for (const token of b) if (a.has(token)) common++;
  return common >= SAME * (a.size + b.length - common);
}
