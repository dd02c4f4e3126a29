/** Vectors in the form in which they are stored: half precision, little-endian, 2 bytes per value. */
import { narrow, widen } from '../../numeric/half.ts';
import { ServingError } from '../../process/errors.ts';

/** From this magnitude on, rounding to nearest would leave the range of a half. */
const TOO_LARGE = 65520;

/** @throws ServingError projector_invalid for a value that is not a finite half. */
export function encodeHalves(vector: Float32Array): Buffer {
  const wrong = vector.findIndex((value) => !(Math.abs(value) < TOO_LARGE));
  if (wrong >= 0) {
    throw new ServingError(
      'projector_invalid',
      `value ${vector[wrong]} at ${wrong} of a projected vector is not a finite fp16 number`,
    );
  }
  const halves = new Uint16Array(vector.length);
  narrow(vector, halves);
  return Buffer.from(halves.buffer);
}

/** @param bytes as stored, at any offset. */
export function decodeHalves(bytes: Uint8Array): Float32Array {
  const aligned = bytes.byteOffset % 2 === 0 ? bytes : new Uint8Array(bytes);
  const vector = new Float32Array(bytes.length >>> 1);
  widen(new Uint16Array(aligned.buffer, aligned.byteOffset, vector.length), vector);
  return vector;
}
