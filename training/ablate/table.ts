/** The table of an ablation as text, in columns for a terminal; Markdown reads it too. */
import type { Estimate } from '../metrics/intervals.ts';
import type { AblationResults, RowFigures } from './results.ts';

interface Column {
  readonly head: string;
  readonly cell: (row: RowFigures) => string | undefined;
}

const estimated = ({ mean, low, high }: Estimate, digits: number) =>
  `${mean.toFixed(digits)} [${low.toFixed(digits)}, ${high.toFixed(digits)}]`;
const signed = ({ mean, low, high }: Estimate, digits = 1) => {
  const shown = [mean, low, high].map((value) => `${value >= 0 ? '+' : ''}${value.toFixed(digits)}`);
  return `${shown[0]} [${shown[1]}, ${shown[2]}]`;
};

const COLUMNS: readonly Column[] = [
  { head: '', cell: ({ title }) => title },
  {
    head: 'CE, R, A, KL',
    cell: ({ weights: w }) => w && [w.ce, w.reinforce, w.alignment, w.kl].map((value) => `${value}`).join(', '),
  },
  { head: 'Distill', cell: ({ weights }) => weights?.distill?.toString() },
  { head: 'Parameters', cell: ({ parameters }) => parameters?.toLocaleString('en-US') },
  { head: 'paper', cell: ({ paper }) => paper.parameters },
  { head: 'CE', cell: ({ ce }) => estimated(ce, 3) },
  { head: 'paper', cell: ({ paper }) => paper.ce?.toFixed(2) },
  { head: 'CE, of its chunks', cell: ({ ofChunks }) => ofChunks && signed(ofChunks, 3) },
  { head: 'cosine', cell: ({ cosine }) => cosine && estimated(cosine, 2) },
  { head: 'of encodings', cell: ({ cosineOfEmbeddings }) => cosineOfEmbeddings?.mean.toFixed(2) },
  { head: 'EM %', cell: ({ em }) => estimated(em, 1) },
  { head: 'paper', cell: ({ paper }) => paper.em?.toFixed(2) },
  { head: 'ES %', cell: ({ es }) => estimated(es, 1) },
  { head: 'paper', cell: ({ paper }) => paper.es?.toFixed(2) },
  { head: 'paper', cell: ({ paper }) => paper.says },
  { head: 'EM gained', cell: ({ gain }) => gain && signed(gain.em) },
  { head: 'ES gained', cell: ({ gain }) => gain && signed(gain.es) },
  { head: 'still right', cell: ({ gain }) => gain && stillRight(gain.rates) },
];

function stillRight({ resilience, rightWithout }: NonNullable<RowFigures['gain']>['rates']): string {
  return resilience === null ? `of 0` : `${Math.round(resilience * rightWithout)} of ${rightWithout}`;
}

/** Columns in which no row has a figure are left out. */
export function tableOf({ rows, differs }: AblationResults): string {
  const cells = COLUMNS.map(({ head, cell }) => [head, ...rows.map((row) => cell(row) ?? '')]);
  const columns = cells.filter(([, ...found]) => found.some((text) => text !== ''));
  const widths = columns.map((column) => Math.max(3, ...column.map((text) => text.length)));
  const line = (i: number) => `| ${columns.map((column, j) => column[i]!.padEnd(widths[j]!)).join(' | ')} |`;
  const rule = `|${widths.map((width) => '-'.repeat(width + 2)).join('|')}|`;
  const table = [line(0), rule, ...rows.map((_, i) => line(i + 1))].join('\n');
  const compared = differs.map((what) => `- ${what}`).join('\n');
  return `${table}

CE in nats a token; EM and ES by the paper's definition. In brackets: 95 % intervals by the bootstrap over samples.
"Gained" is the difference to the row without context, sample by sample. "Still right": exact matches without context
that are exact matches with it. "Of its chunks": how much higher CE is with the soft tokens of another sample's chunks.
"Cosine" is the mean between two soft tokens of a sample, "of encodings" that between its chunks before the projector:
near 1 a projector has collapsed, and says the same of every chunk.

What differs from the paper:
${compared}
`;
}
