/** Least squares with a small penalty on large weights (ridge regression), for one layer of a projector. */

/** The penalty, as a share of the number of rows: features have a mean square of about 1. */
const PENALTY = 0.01;

/**
 * The linear map of features to wanted values that has the smallest mean square error. Both are compared without their
 * means: the map has no bias.
 * @param features [rows, width]
 * @param wanted [rows, outputs]
 * @returns [outputs, width], as a layer has its weights, and the means of the features [width]
 */
export function leastSquares(
  features: Float32Array,
  width: number,
  wanted: Float32Array,
  outputs: number,
): { readonly weight: Float64Array; readonly means: Float64Array } {
  const rows = features.length / width;
  const means = meansOf(features, width);
  const wantedMeans = meansOf(wanted, outputs);
  const gram = new Float64Array(width * width); // the lower half
  const right = new Float64Array(width * outputs);
  const one = new Float64Array(width);
  const target = new Float64Array(outputs);
  for (let row = 0; row < rows; row++) {
    for (let i = 0; i < width; i++) one[i] = features[row * width + i]! - means[i]!;
    for (let o = 0; o < outputs; o++) target[o] = wanted[row * outputs + o]! - wantedMeans[o]!;
    for (let i = 0; i < width; i++) {
      const value = one[i]!;
      for (let j = 0; j <= i; j++) gram[i * width + j]! += value * one[j]!;
      for (let o = 0; o < outputs; o++) right[i * outputs + o]! += value * target[o]!;
    }
  }
  for (let i = 0; i < width; i++) gram[i * width + i]! += PENALTY * rows;
  solve(gram, width, right, outputs);
  const weight = new Float64Array(outputs * width);
  for (let i = 0; i < width; i++) for (let o = 0; o < outputs; o++) weight[o * width + i] = right[i * outputs + o]!;
  return { weight, means };
}

function meansOf(values: Float32Array, width: number): Float64Array {
  const means = new Float64Array(width);
  for (const [i, value] of values.entries()) means[i % width]! += value;
  return means.map((sum) => (sum * width) / values.length);
}

/**
 * Solves A·X = B in place of B, by Cholesky's decomposition.
 * @param a the lower half of a symmetric, positive matrix [n, n]; its decomposition afterwards
 * @param b [n, columns]
 */
function solve(a: Float64Array, n: number, b: Float64Array, columns: number): void {
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = a[i * n + j]!;
      for (let k = 0; k < j; k++) sum -= a[i * n + k]! * a[j * n + k]!;
      a[i * n + j] = i === j ? Math.sqrt(sum) : sum / a[j * n + j]!;
    }
  }
  const subtract = (from: number, other: number, factor: number) => {
    for (let o = 0; o < columns; o++) b[from * columns + o]! -= factor * b[other * columns + o]!;
  };
  const divide = (row: number) => {
    for (let o = 0; o < columns; o++) b[row * columns + o]! /= a[row * n + row]!;
  };
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < i; k++) subtract(i, k, a[i * n + k]!);
    divide(i);
  }
  for (let i = n - 1; i >= 0; i--) {
    for (let k = i + 1; k < n; k++) subtract(i, k, a[k * n + i]!);
    divide(i);
  }
}
