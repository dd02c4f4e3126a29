/**
 * Random numbers without state: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11), a
 * counter-based generator. The numbers at a position depend on (seed, position) alone, so a sequence that moves to
 * another worker draws there what it would have drawn here.
 */

type Words = readonly [number, number, number, number];

const ROUNDS = 10;
const MULTIPLIER_0 = 0xd2511f53;
const MULTIPLIER_2 = 0xcd9e8d57;
/** Weyl increments of the key: the golden ratio and sqrt(3) - 1, as fractions of 2^32. */
const KEY_STEP_0 = 0x9e3779b9;
const KEY_STEP_1 = 0xbb67ae85;

/** Upper 32 bits of the 64-bit product of two unsigned 32-bit words. */
function multiplyHigh(a: number, b: number): number {
  const aLow = a & 0xffff;
  const aHigh = a >>> 16;
  const bLow = b & 0xffff;
  const bHigh = b >>> 16;
  // Neither sum reaches 2^32: 0xffff * 0xffff + 0xffff is below it.
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  const carried = aLow * bHigh + (middle & 0xffff);
  return aHigh * bHigh + (middle >>> 16) + (carried >>> 16);
}

/** Four random 32-bit words from a 128-bit counter and a 64-bit key, all little-endian by word. */
export function philox4x32(counter: Words, key: readonly [number, number]): Words {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < ROUNDS; round++) {
    const high0 = multiplyHigh(MULTIPLIER_0, c0);
    const low0 = Math.imul(MULTIPLIER_0, c0);
    const high2 = multiplyHigh(MULTIPLIER_2, c2);
    const low2 = Math.imul(MULTIPLIER_2, c2);
    c0 = (high2 ^ c1 ^ k0) >>> 0;
    c1 = low2 >>> 0;
    c2 = (high0 ^ c3 ^ k1) >>> 0;
    c3 = low0 >>> 0;
    k0 = (k0 + KEY_STEP_0) >>> 0;
    k1 = (k1 + KEY_STEP_1) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/**
 * Four random words for one position of a sequence.
 * @param seed whole number below 2^53.
 * @param position below 2^32.
 */
export function wordsAt(seed: number, position: number): Words {
  return philox4x32([position, 0, 0, 0], [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0]);
}

/**
 * 32 random bits for one token. For given keys it is a permutation of the ids. (Philox for each of 152k tokens would
 * take 10 ms.)
 */
export function noiseBits(id: number, keyA: number, keyB: number): number {
  return mix((mix(id ^ keyA) + keyB) | 0);
}

/**
 * A permutation of 32 bits: of those with two multiplications, the one for which Wellons's hash-prospector found least
 * bias.
 */
function mix(bits: number): number {
  let x = Math.imul(bits ^ (bits >>> 16), 0x21f0aaad);
  x = Math.imul(x ^ (x >>> 15), 0x735a2d97);
  return (x ^ (x >>> 15)) >>> 0;
}
