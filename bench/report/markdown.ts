/** Markdown tables, and the way figures are written in them. */
import type { Interval } from '../measure/statistics.ts';

type Align = 'left' | 'right';

/** @param align alignment of the columns; by default the first is aligned left and the others right. */
export function table(
  head: readonly string[],
  rows: readonly (readonly string[])[],
  align: readonly Align[] = [],
): string {
  const rule = head.map((_, i) => ((align[i] ?? (i === 0 ? 'left' : 'right')) === 'left' ? ':--' : '--:'));
  const line = (cells: readonly string[]) => `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
  return [line(head), line(rule), ...rows.map(line)].join('\n');
}

/** Three significant digits, like 1234, 123, 12.3 and 1.23; a dash for an unknown figure. */
export function figure(value: number | undefined): string {
  if (value === undefined || !Number.isFinite(value)) return '—';
  const magnitude = Math.abs(value);
  return value.toFixed(magnitude >= 100 || value === 0 ? 0 : magnitude >= 10 ? 1 : 2);
}

/** A share in percent: 0.204 is written `20 %`. */
export const percent = (share: number | undefined, digits = 0) =>
  share === undefined || !Number.isFinite(share) ? '—' : `${(100 * share).toFixed(digits)} %`;

/** Probability that an interval has which does not say so. */
const USUAL_COVERAGE = 0.95;

/**
 * The bounds of an interval, like `1.01 to 1.57`; with few samples also the probability that it has in place of 95 %,
 * like `1.01 to 1.57 at 88 %`.
 */
export function bounds({ low, high, coverage }: Interval, write: (value: number) => string = figure): string {
  const range = `${write(low)} to ${write(high)}`;
  return coverage < USUAL_COVERAGE ? `${range} at ${percent(coverage)}` : range;
}

/** A reduction as the paper writes it: `↓ 21 %`, or `↑ 5 %` for growth. */
export function change(reduction: number): string {
  const points = Math.round(100 * reduction);
  return points === 0 ? '±0 %' : `${points > 0 ? '↓' : '↑'} ${Math.abs(points)} %`;
}

/** Bytes in MiB, as a figure. */
export const mebibytes = (bytes: number | undefined) => figure(bytes === undefined ? undefined : bytes / 2 ** 20);
