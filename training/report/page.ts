/**
 * A run as one page of HTML that needs nothing else: the curves of losses and scores (the paper's Figure 3), and the
 * pairwise cosines of embeddings and soft tokens (its Figure 2).
 */
import { basename } from 'node:path';
import { escaped, type Line, lineChart } from './chart.ts';
import { bitmap, cosines, SCALE } from './matrix.ts';

/** The figures of one step or validation, as the run's log has them; null for what could not be measured. */
export type Figures = { readonly step: number } & Readonly<Record<string, number | null>>;

/** The same chunks before and after the projector, one row each. */
export interface PicturedVectors {
  readonly embeddings: readonly Float32Array[];
  readonly soft: readonly Float32Array[];
  /** Of what they are chunks, in words. */
  readonly of: string;
}

export interface RunPicture {
  /** Folder of the run. */
  readonly folder: string;
  /** Where the run stands, in words. */
  readonly state: string;
  /** The page of a run that goes on is read again by the browser every minute. */
  readonly ended: boolean;
  readonly alarm: string | undefined;
  readonly records: readonly Figures[];
  readonly vectors: PicturedVectors | undefined;
}

/** Charts: title, and the lines with the names that the log has for them. Lines that are always 0 are left out. */
const CHARTS: readonly (readonly [title: string, lines: Readonly<Record<string, string>>, scale?: number])[] = [
  ['Weighted sum of the losses', { loss: 'training' }],
  ['Cross-entropy', { ce: 'training', validCe: 'validation' }],
  ['EM and ES of the validation, %', { validEm: 'exact match', validEs: 'edit similarity' }, 100],
  ['Distance to memory tokens', { mse: 'mean square', cosineDistance: '1 - cosine' }],
  ['REINFORCE', { reinforce: 'training' }],
  ['Mean reward of the rollouts', { reward: 'training' }],
  ['Alignment of cosines', { alignment: 'training' }],
  ['Divergence from the model that reads text', { kl: 'training' }],
  ['Distillation: cross-entropy of what the model that reads text writes', { distill: 'training' }],
  ['Mean pairwise cosine', { meanCosine: 'soft tokens', meanCosineOfEmbeddings: 'embeddings' }],
  ['Norm of the gradient', { gradientNorm: 'training' }],
  ['Learning rate', { rate: 'training' }],
];

/** Validations also count when they found nothing right: an EM of 0 is a figure. */
const KEPT_AT_ZERO = new Set(['validEm', 'validEs']);

const STYLE = `body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1180px;padding:0 1em;color:#222}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(480px,1fr));gap:1em}
svg{width:100%;background:#fff;border:1px solid #ddd}svg text{font-size:11px;fill:#444;stroke:none}
.title{font-size:14px!important;text-anchor:middle;font-weight:600}.x{text-anchor:middle}.y{text-anchor:end;dominant-baseline:middle}
.line{fill:none;stroke-width:1.6}.grid{stroke:#e6e6e6}.axis{stroke:#888;fill:none}
.alarm{background:#fff3cd;border-left:4px solid #D55E00;padding:.6em 1em}
.matrices{display:flex;flex-wrap:wrap;gap:2em}figure{margin:0}figure img{width:400px;height:400px;image-rendering:pixelated}
.scale{width:400px;height:12px;background:${SCALE}}.ends{width:400px;display:flex;justify-content:space-between}`;

function chartOf(records: readonly Figures[], [title, names, scale = 1]: (typeof CHARTS)[number]): string {
  const lines = Object.entries(names).flatMap(([name, label]): Line[] => {
    const points = records.flatMap((record): [number, number][] => {
      const value = record[name];
      return typeof value === 'number' ? [[record.step, value * scale]] : [];
    });
    const told = KEPT_AT_ZERO.has(name) || points.some(([, value]) => value !== 0);
    return points.length > 0 && told ? [{ name: label, points }] : [];
  });
  return lines.length === 0 ? '' : lineChart(title, 'step', lines);
}

function matrices({ embeddings, soft, of }: NonNullable<RunPicture['vectors']>): string {
  const figure = (rows: readonly Float32Array[], what: string) =>
    `<figure><img src="${bitmap(cosines(rows), rows.length)}" alt="${what}"/><figcaption>${what}</figcaption></figure>`;
  return `<h2>Pairwise cosines of ${soft.length} chunks of ${of}</h2>
<div class="matrices">${figure(embeddings, 'Embeddings of the encoder')}${figure(soft, 'Soft tokens of the projector')}</div>
<div class="scale"></div><div class="ends"><span>0 or less</span><span>1: the same direction</span></div>
<p>A projector that keeps chunks apart has the structure of the encoder; one that has collapsed is 1 everywhere.</p>`;
}

export function runPage({ folder, state, ended, alarm, records, vectors }: RunPicture): string {
  const title = `Training ${escaped(basename(folder))}`;
  return `<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/>${ended ? '' : '<meta http-equiv="refresh" content="60"/>'}
<title>${title}</title><style>${STYLE}</style></head><body>
<h1>${title}</h1><p>${escaped(state)}</p>
${alarm === undefined ? '' : `<p class="alarm">${escaped(alarm)}</p>`}
<div class="charts">${CHARTS.map((chart) => chartOf(records, chart)).join('\n')}</div>
${vectors === undefined || vectors.soft.length < 2 ? '' : matrices(vectors)}
</body></html>
`;
}
