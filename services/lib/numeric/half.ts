/**
 * IEEE 754 binary16 (half precision): the format of published weights, of stored vectors and, optionally, of KV on the
 * wire. Widening is exact. Narrowing rounds to nearest, ties to even; values beyond the largest finite half become
 * +-65504.
 */

const SMALLEST_NORMAL = 0x38800000; // 2^-14, as the bits of a float32
const LARGEST = 0x477fe000; // 65504
/** Difference between the exponents' biases of float32 and half, in the bits of a float32. */
const REBIAS = 112 << 23;
const INFINITY = 0x7f800000;

const value = new Float32Array(1);
const valueBits = new Uint32Array(value.buffer);

/** @param halves written; as many as `floats`. NaN stays NaN. */
export function narrow(floats: Float32Array, halves: Uint16Array): void {
  const bits = new Uint32Array(floats.buffer, floats.byteOffset, floats.length);
  for (let i = 0; i < bits.length; i++) {
    const x = bits[i]!;
    const magnitude = x & 0x7fffffff;
    let half: number;
    if (magnitude >= SMALLEST_NORMAL && magnitude <= LARGEST) {
      // Adds half a unit of the last kept place minus one bit, plus one bit if that place is odd: ties go to even.
      half = (magnitude - REBIAS + 0xfff + ((magnitude >>> 13) & 1)) >>> 13;
    } else if (magnitude < SMALLEST_NORMAL) {
      // Adding 0.5 shifts the bits that a subnormal half keeps to the end of a float32, rounded.
      value[0] = Math.abs(floats[i]!) + 0.5;
      half = valueBits[0]! - 0x3f000000;
    } else {
      half = magnitude > INFINITY ? 0x7e00 : 0x7bff;
    }
    halves[i] = ((x >>> 16) & 0x8000) | half;
  }
}

/** The value of every half, by its bits, made on first use. A look-up takes a third of the time of a computation. */
let values: Float32Array | undefined;

/** @param floats written; as many as `halves`. */
export function widen(halves: Uint16Array, floats: Float32Array): void {
  values ??= Float32Array.from({ length: 1 << 16 }, (_, half) => numberOf(half));
  const table = values;
  for (let i = 0; i < halves.length; i++) floats[i] = table[halves[i]!]!;
}

function numberOf(half: number): number {
  const exponent = (half >>> 10) & 0x1f;
  const mantissa = half & 0x3ff;
  const sign = half & 0x8000 ? -1 : 1;
  if (exponent === 0) return sign * mantissa * 2 ** -24;
  if (exponent === 31) return mantissa === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return sign * (1024 + mantissa) * 2 ** (exponent - 25);
}

const one = new Float32Array(1);
const oneHalf = new Uint16Array(1);

/** The half nearest to a number. */
export function nearestHalf(number: number): number {
  one[0] = number;
  narrow(one, oneHalf);
  return numberOf(oneHalf[0]!);
}
