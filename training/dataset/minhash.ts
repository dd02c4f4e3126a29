/**
 * Finds files that are nearly equal: MinHash signatures (Broder 1997) of the sets of their shingles, runs of five
 * words, and locality-sensitive hashing, which compares only files that agree in a band of their signatures.
 */
import { wordsAt } from '../../services/lib/numeric/random.ts';

/** Values of a signature: the standard error of an estimate is sqrt(J(1-J)/128), 0.04 at 0.7. */
export const SIGNATURE_VALUES = 128;
/**
 * Values of a band. Two files of similarity J share one of the 32 bands with probability 1-(1-J^4)^32: 0.9998 at 0.7.
 */
const BAND_VALUES = 4;
/** Files are nearly equal from this estimate on, the bound with which The Stack was deduplicated. */
export const NEARLY_EQUAL = 0.7;
const SHINGLE_WORDS = 5;
/** Files with fewer shingles are compared as a whole only: a few lines of boilerplate make them alike. */
const FEWEST_SHINGLES = 20;

const WORD = /[\p{L}\p{N}_]+/gu;

/** The shingles of a text as 32-bit hashes. */
export function shingles(text: string): Set<number> {
  const words = Array.from(text.match(WORD) ?? [], hashOf);
  const found = new Set<number>();
  for (let at = 0; at + SHINGLE_WORDS <= words.length; at++) {
    let hash = 0;
    for (let i = 0; i < SHINGLE_WORDS; i++) hash = mix(Math.imul(hash, 31) + words[at + i]!);
    found.add(hash >>> 0);
  }
  return found;
}

/** FNV-1a. */
function hashOf(word: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < word.length; i++) hash = Math.imul(hash ^ word.charCodeAt(i), 0x01000193);
  return hash;
}

/** The finaliser of MurmurHash3: a permutation of 32 bits. */
function mix(bits: number): number {
  let x = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return x ^ (x >>> 16);
}

export class MinHash {
  readonly #keys: Uint32Array;

  constructor(seed: number) {
    this.#keys = Uint32Array.from({ length: SIGNATURE_VALUES }, (_, i) => wordsAt(seed, i)[0]);
  }

  /** By value, the smallest hash of all shingles under the value's own permutation of the hashes. */
  signature(shingles: ReadonlySet<number>): Uint32Array {
    const least = new Uint32Array(SIGNATURE_VALUES).fill(0xffffffff);
    for (const shingle of shingles) {
      for (let i = 0; i < SIGNATURE_VALUES; i++) {
        const hash = mix(shingle ^ this.#keys[i]!) >>> 0;
        if (hash < least[i]!) least[i] = hash;
      }
    }
    return least;
  }
}

/** The share of values that agree: an unbiased estimate of |A∩B| / |A∪B|. */
export function estimate(a: Uint32Array, b: Uint32Array): number {
  let equal = 0;
  for (let i = 0; i < SIGNATURE_VALUES; i++) if (a[i] === b[i]) equal++;
  return equal / SIGNATURE_VALUES;
}

/** Texts that others must not be nearly equal to. */
export class NearCopies {
  readonly #minhash: MinHash;
  /** By band and its values, the signatures that have them. */
  readonly #bands = new Map<string, Uint32Array[]>();

  constructor(seed: number) {
    this.#minhash = new MinHash(seed);
  }

  /** The signature of a text; undefined for one that is too short to compare. */
  signatureOf(text: string): Uint32Array | undefined {
    const found = shingles(text);
    return found.size < FEWEST_SHINGLES ? undefined : this.#minhash.signature(found);
  }

  add(signature: Uint32Array): void {
    for (const band of bandsOf(signature)) {
      const others = this.#bands.get(band);
      if (others) others.push(signature);
      else this.#bands.set(band, [signature]);
    }
  }

  has(signature: Uint32Array): boolean {
    return bandsOf(signature).some((band) =>
      this.#bands.get(band)?.some((other) => estimate(signature, other) >= NEARLY_EQUAL),
    );
  }
}

function bandsOf(signature: Uint32Array): string[] {
  const bands: string[] = [];
  for (let at = 0; at < SIGNATURE_VALUES; at += BAND_VALUES) {
    bands.push(`${at}:${signature.subarray(at, at + BAND_VALUES).join()}`);
  }
  return bands;
}
