/** Charts of lines as SVG text. (ECharts, which the bench suite draws with, is not part of an installation.) */

/** A line through points [x, y], in the order of x. */
export interface Line {
  readonly name: string;
  readonly points: readonly (readonly [number, number])[];
}

const [WIDTH, HEIGHT] = [560, 300];
/** Room for the labels around the plot. */
const MARGIN = { left: 62, right: 16, top: 34, bottom: 58 };
/** The palette of Okabe and Ito, which the colour-blind can tell apart as well. */
const COLOURS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9'];
/** A line of more points becomes one of so many means: a page stays small, and the noise of single steps is evened. */
const MOST_POINTS = 400;

export const escaped = (text: string): string =>
  text.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;').replace(/"/g, '&quot;');

/** Means of neighbouring points, at most {@link MOST_POINTS}. */
function thinned(points: Line['points']): Line['points'] {
  if (points.length <= MOST_POINTS) return points;
  return Array.from({ length: MOST_POINTS }, (_, i) => {
    const start = Math.floor((i * points.length) / MOST_POINTS);
    const part = points.slice(start, Math.floor(((i + 1) * points.length) / MOST_POINTS));
    const mean = (axis: 0 | 1) => part.reduce((sum, point) => sum + point[axis] / part.length, 0);
    return [mean(0), mean(1)];
  });
}

/** Round values that divide the range from `low` to `high` into about five parts. */
function ticks(low: number, high: number): number[] {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((times) => times * power >= rough) ?? 10);
  const first = Math.ceil(low / step - 1e-9);
  const count = Math.floor(high / step + 1e-9) - first + 1;
  const digits = Math.max(0, -Math.floor(Math.log10(step)));
  return Array.from({ length: Math.max(0, count) }, (_, i) =>
    Number(((first + i) * step).toFixed(Math.min(digits, 12))),
  );
}

/** The smallest and the largest of the values, apart from one another. */
function range(values: readonly number[]): [low: number, high: number] {
  let [low, high] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (!Number.isFinite(low)) return [0, 1];
  const room = high > low ? 0 : Math.abs(low) / 10 || 1;
  return [low - room, high + room];
}

/** A chart of the lines that have points; numbers that are not finite are left out. */
export function lineChart(title: string, x: string, lines: readonly Line[]): string {
  const drawn = lines
    .map(({ name, points }) => ({ name, points: thinned(points.filter((point) => point.every(Number.isFinite))) }))
    .filter(({ points }) => points.length > 0);
  const all = drawn.flatMap(({ points }) => points);
  const [xs, ys] = [range(all.map((point) => point[0])), range(all.map((point) => point[1]))];
  const right = WIDTH - MARGIN.right;
  const bottom = HEIGHT - MARGIN.bottom;
  const atX = (value: number) => (MARGIN.left + ((value - xs[0]) / (xs[1] - xs[0])) * (right - MARGIN.left)).toFixed(1);
  const atY = (value: number) => (bottom - ((value - ys[0]) / (ys[1] - ys[0])) * (bottom - MARGIN.top)).toFixed(1);
  const grid = [
    ...ticks(...ys).map(
      (y) =>
        `<path d="M${MARGIN.left} ${atY(y)}H${right}" class="grid"/><text x="${MARGIN.left - 6}" y="${atY(y)}" class="y">${y}</text>`,
    ),
    ...ticks(...xs).map((at) => `<text x="${atX(at)}" y="${bottom + 16}" class="x">${at}</text>`),
  ];
  const paths = drawn.map(({ name, points }, i) => {
    const colour = COLOURS[i % COLOURS.length];
    const path = points.map(([px, py]) => `${atX(px)} ${atY(py)}`).join('L');
    const dot = points.length === 1 ? `<circle cx="${atX(points[0]![0])}" cy="${atY(points[0]![1])}" r="3"/>` : '';
    const at = MARGIN.left + i * 150;
    return `<g stroke="${colour}" fill="${colour}"><path d="M${path}" class="line"/>${dot}<rect x="${at}" y="${HEIGHT - 16}" width="12" height="4"/><text x="${at + 18}" y="${HEIGHT - 10}" class="legend">${escaped(name)}</text></g>`;
  });
  return `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${escaped(title)}"><text x="${WIDTH / 2}" y="18" class="title">${escaped(title)}</text>${grid.join('')}<path d="M${MARGIN.left} ${MARGIN.top}V${bottom}H${right}" class="axis"/>${paths.join('')}<text x="${(MARGIN.left + right) / 2}" y="${bottom + 32}" class="x">${escaped(x)}</text></svg>`;
}
