/**
 * IEEE 754 binary16, the form of published weights, stored vectors and, if wished, KV on the wire. Widening is exact;
 * narrowing rounds to nearest, ties to even, and takes what is beyond the largest finite half, 65504, as that.
 */

const SMALLEST_NORMAL = 0x38800000; // 2^-14, as the bits of a float32
const LARGEST = 0x477fe000; // 65504
/** Between the exponents of a float32 and of a half, in place. */
const REBIAS = 112 << 23;
const INFINITY = 0x7f800000;

const value = new Float32Array(1);
const valueBits = new Uint32Array(value.buffer);

/** @param halves as many as `floats`, written; NaN stays NaN. */
export function narrow(floats: Float32Array, halves: Uint16Array): void {
  const bits = new Uint32Array(floats.buffer, floats.byteOffset, floats.length);
  for (let i = 0; i < bits.length; i++) {
    const x = bits[i]!;
    const magnitude = x & 0x7fffffff;
    let half: number;
    if (magnitude >= SMALLEST_NORMAL && magnitude <= LARGEST) {
      // Half of the last place that stays, less one, and one more where that place is odd: ties go to even.
      half = (magnitude - REBIAS + 0xfff + ((magnitude >>> 13) & 1)) >>> 13;
    } else if (magnitude < SMALLEST_NORMAL) {
      // Adding 0.5 shifts what a subnormal half keeps to the end of a float32, rounded.
      value[0] = Math.abs(floats[i]!) + 0.5;
      half = valueBits[0]! - 0x3f000000;
    } else {
      half = magnitude > INFINITY ? 0x7e00 : 0x7bff;
    }
    halves[i] = ((x >>> 16) & 0x8000) | half;
  }
}

/** All halves by their bits, made on first use: a load for each instead of a computation, a third of the time. */
let values: Float32Array | undefined;

/** @param floats as many as `halves`, written. */
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
