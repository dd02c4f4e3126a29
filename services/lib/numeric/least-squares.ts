/** The fit of a few coefficients to measurements. */

/** Least-squares fit of y = c0 f0(x) + c1 f1(x) + … by the normal equations, meant for a few well-scaled columns. */
export function leastSquares(rows: readonly (readonly number[])[], y: readonly number[]): number[] {
  const width = rows[0]?.length ?? 0;
  // The rows of [XᵀX | Xᵀy], of shape [width, width + 1].
  const system = Array.from({ length: width }, (_, i) =>
    Array.from({ length: width + 1 }, (_, j) =>
      rows.reduce((sum, row, r) => sum + row[i]! * (j === width ? y[r]! : row[j]!), 0),
    ),
  );
  for (let i = 0; i < width; i++) {
    const pivot = system.slice(i).reduce((best, row) => (Math.abs(row[i]!) > Math.abs(best[i]!) ? row : best));
    const at = system.indexOf(pivot);
    [system[i], system[at]] = [pivot, system[i]!];
    for (const row of system) {
      if (row === pivot || pivot[i] === 0) continue;
      const factor = row[i]! / pivot[i]!;
      for (let j = i; j <= width; j++) row[j]! -= factor * pivot[j]!;
    }
  }
  return system.map((row, i) => row[width]! / row[i]!);
}
