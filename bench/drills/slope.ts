/** Fits a line to the floor that memory falls back to after collections, and estimates the error of its slope. */

export interface Slope {
  readonly mean: number;
  /** Change of the floor per unit of x. */
  readonly perUnit: number;
  /** Standard error of `perUnit`. */
  readonly error: number;
}

type Point = readonly [x: number, y: number];

/** Number of parts; each should be longer than the time between two full collections. */
const PARTS = 6;

/**
 * Least squares through the lowest points of six parts of the time. The size of a heap rises and falls like the teeth
 * of a saw between collections; what it leaks raises the floor.
 * @param points ascending in x. If they fill fewer than three parts, the error is infinite.
 */
export function fitFloor(points: readonly Point[]): Slope {
  const mean = average(points.map(([, y]) => y));
  const size = Math.ceil(points.length / PARTS);
  const floors = Array.from({ length: PARTS }, (_, i) => points.slice(i * size, (i + 1) * size))
    .filter((part) => part.length > 0)
    .map((part) => part.reduce((lowest, point) => (point[1] < lowest[1] ? point : lowest)));
  if (floors.length < 3) return { mean, perUnit: 0, error: Infinity };
  const [centreX, centreY] = [average(floors.map(([x]) => x)), average(floors.map(([, y]) => y))];
  const sum = (term: (dx: number, dy: number) => number) =>
    floors.reduce((total, [x, y]) => total + term(x - centreX, y - centreY), 0);
  const spread = sum((dx) => dx * dx);
  const perUnit = sum((dx, dy) => dx * dy) / spread;
  const residual = sum((dx, dy) => (dy - perUnit * dx) ** 2);
  return { mean, perUnit, error: Math.sqrt(residual / (floors.length - 2) / spread) };
}

const average = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / (values.length || 1);
