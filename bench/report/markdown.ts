/** Markdown tables, and how figures are written in them. */

export type Align = 'left' | 'right';

/** @param align of the columns; the first is left, the others right, unless it says otherwise. */
export function table(
  head: readonly string[],
  rows: readonly (readonly string[])[],
  align: readonly Align[] = [],
): string {
  const rule = head.map((_, i) => ((align[i] ?? (i === 0 ? 'left' : 'right')) === 'left' ? ':--' : '--:'));
  const line = (cells: readonly string[]) => `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
  return [line(head), line(rule), ...rows.map(line)].join('\n');
}

/** Three significant digits: 1234, 123, 12.3, 1.23; a dash for what is not known. */
export function figure(value: number | undefined): string {
  if (value === undefined || !Number.isFinite(value)) return '—';
  const magnitude = Math.abs(value);
  return value.toFixed(magnitude >= 100 || value === 0 ? 0 : magnitude >= 10 ? 1 : 2);
}

/** A share in percent: 0.204 is `20 %`. */
export const percent = (share: number | undefined, digits = 0) =>
  share === undefined || !Number.isFinite(share) ? '—' : `${(100 * share).toFixed(digits)} %`;

/** By how much something fell, as the paper writes it: `↓ 21 %`, `↑ 5 %`. */
export function change(reduction: number): string {
  const points = Math.round(100 * reduction);
  return points === 0 ? '±0 %' : `${points > 0 ? '↓' : '↑'} ${Math.abs(points)} %`;
}
