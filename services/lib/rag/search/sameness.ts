/**
 * Equal and nearly equal chunks take one place among the hits: vendored copies, generated variants, and windows of one
 * file that hardly differ would fill a prompt with one text.
 *
 * Exact copies never leave the index (see InvertedIndex.excluding). Near-copies are told here, by their identifiers.
 */

/**
 * Chunks are the same from this share of common identifiers on, |A∩B| / |A∪B|. Neighbouring windows share half of
 * their lines and are not meant: in the sample repository and six others half of them lie below 0.44 to 0.50 and
 * nineteen in twenty below 0.69 to 0.81, while a window of 25 identifiers in which two are renamed lies at 0.85. On the
 * questions of `bench recall`, jaccard and bm25 find with 0.8 as many of the chunks that are needed in each of the
 * seven, and more in two of them; with 0.75 they find fewer in the sample repository (0.229 instead of 0.238).
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
  // How many they must have in common at least: common ≥ SAME × (a + b − common).
  const enough = (SAME / (1 + SAME)) * (a.size + b.length);
  let possible = Math.min(a.size, b.length);
  if (possible < enough) return false; // whatever they have in common
  possible = b.length;
  for (const token of b) if (!a.has(token) && --possible < enough) return false;
  return true;
}
