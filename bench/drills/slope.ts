/** The line through measured points, and how sure it is. */

export interface Slope {
  readonly mean: number;
  /** Change of y for one of x. */
  readonly perUnit: number;
  /**
   * Standard error of `perUnit`. Points that follow each other resemble each other, and the usual formula would be too sure
   * of them: the line goes through the means of six parts instead.
   */
  readonly error: number;
}

const PARTS = 6;

/** Least squares. @param points x and y, ascending in x; fewer than two have no slope. */
export function fitSlope(points: readonly (readonly [x: number, y: number])[]): Slope {
  const mean = average(points.map(([, y]) => y));
  if (points.length < 2) return { mean, perUnit: 0, error: Infinity };
  const size = Math.ceil(points.length / PARTS);
  // Means of parts: what is left of the noise within one averages out.
  const parts = Array.from({ length: PARTS }, (_, i) => points.slice(i * size, (i + 1) * size))
    .filter((part) => part.length > 0)
    .map((part) => [average(part.map(([x]) => x)), average(part.map(([, y]) => y))] as const);
  const perUnit = slopeOf(parts);
  if (parts.length < 3) return { mean, perUnit, error: Infinity };
  const [centreX, centreY] = [average(parts.map(([x]) => x)), average(parts.map(([, y]) => y))];
  const residual = parts.reduce((sum, [x, y]) => sum + (y - centreY - perUnit * (x - centreX)) ** 2, 0);
  const spread = parts.reduce((sum, [x]) => sum + (x - centreX) ** 2, 0);
  return { mean, perUnit, error: Math.sqrt(residual / (parts.length - 2) / spread) };
}

function slopeOf(points: readonly (readonly [number, number])[]): number {
  const [centreX, centreY] = [average(points.map(([x]) => x)), average(points.map(([, y]) => y))];
  const spread = points.reduce((sum, [x]) => sum + (x - centreX) ** 2, 0);
  return spread === 0 ? 0 : points.reduce((sum, [x, y]) => sum + (x - centreX) * (y - centreY), 0) / spread;
}

const average = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / (values.length || 1);
