/** How alike vectors are. */

/**
 * Mean cosine over all pairs of different rows; 0 for a single row. A row of zeros has a cosine of 0 to any other.
 * @param vectors [rows, width]
 */
export function meanCosine(vectors: Float32Array, rows: number): number {
  if (rows < 2) return 0;
  const width = vectors.length / rows;
  const units = Array.from({ length: rows }, (_, i) => {
    const row = vectors.subarray(i * width, (i + 1) * width);
    const length = Math.hypot(...row) || 1;
    return Float64Array.from(row, (value) => value / length);
  });
  let sum = 0;
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < i; j++) sum += units[i]!.reduce((dot, value, k) => dot + value * units[j]![k]!, 0);
  }
  return sum / ((rows * (rows - 1)) / 2);
}
