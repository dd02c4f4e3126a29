/** Matrices of pairwise cosines as pictures: bitmaps with a palette, within the page. */

/** Colours from a cosine of 0 or less to one of 1; between these they are mixed (the map viridis). */
const STOPS = [0x440154, 0x3b528b, 0x21918c, 0x5ec962, 0xfde725];
const PALETTE = 256;

/** The cosines between all rows, [rows, rows]; 0 with a row of zeros. */
export function cosines(rows: readonly Float32Array[]): Float64Array {
  const lengths = rows.map((row) => Math.hypot(...row) || 1);
  const found = new Float64Array(rows.length * rows.length);
  for (const [i, a] of rows.entries()) {
    for (let j = 0; j <= i; j++) {
      const b = rows[j]!;
      let dot = 0;
      for (let k = 0; k < a.length; k++) dot += a[k]! * b[k]!;
      const cosine = dot / (lengths[i]! * lengths[j]!);
      found[i * rows.length + j] = cosine;
      found[j * rows.length + i] = cosine;
    }
  }
  return found;
}

/** Blue, green and red of a share from 0 to 1. */
function colour(share: number): [number, number, number] {
  const at = share * (STOPS.length - 1);
  const from = Math.min(Math.floor(at), STOPS.length - 2);
  return [0, 8, 16].map((shift) => {
    const [a, b] = [(STOPS[from]! >> shift) & 0xff, (STOPS[from + 1]! >> shift) & 0xff];
    return Math.round(a + (b - a) * (at - from));
  }) as [number, number, number];
}

/** The colours as a gradient of CSS, from 0 to 1. */
export const SCALE = `linear-gradient(to right, ${STOPS.map((stop) => `#${stop.toString(16).padStart(6, '0')}`).join(', ')})`;

/** A square picture as a `data:` address, one pixel for each value: BMP with 8 bits a pixel, its first row below. */
export function bitmap(values: Float64Array, size: number): string {
  const stride = Math.ceil(size / 4) * 4;
  const start = 54 + 4 * PALETTE;
  const bytes = Buffer.alloc(start + stride * size);
  bytes.write('BM');
  bytes.writeUInt32LE(bytes.length, 2);
  bytes.writeUInt32LE(start, 10);
  bytes.writeUInt32LE(40, 14); // size of the second header
  bytes.writeInt32LE(size, 18);
  bytes.writeInt32LE(size, 22);
  bytes.writeUInt16LE(1, 26); // planes
  bytes.writeUInt16LE(8, 28); // bits a pixel
  bytes.writeUInt32LE(stride * size, 34);
  bytes.writeUInt32LE(PALETTE, 46);
  for (let i = 0; i < PALETTE; i++) bytes.set(colour(i / (PALETTE - 1)), 54 + 4 * i);
  for (let row = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      const share = Math.min(1, Math.max(0, values[row * size + column]!));
      bytes[start + (size - 1 - row) * stride + column] = Math.round(share * (PALETTE - 1));
    }
  }
  return `data:image/bmp;base64,${bytes.toString('base64')}`;
}
