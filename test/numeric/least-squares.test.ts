import { describe, expect, it } from 'vitest';
import { leastSquares } from '../../services/lib/numeric/least-squares.ts';

describe('leastSquares', () => {
  it('least squares find the coefficients of exact data', () => {
    const xs = [0.25, 0.5, 1, 2];
    const [a, b, c] = leastSquares(
      xs.map((x) => [1, x, x * x]),
      xs.map((x) => 12 + 700 * x + 90 * x * x),
    );
    expect(a).toBeCloseTo(12, 6);
    expect(b).toBeCloseTo(700, 6);
    expect(c).toBeCloseTo(90, 6);
  });
});
