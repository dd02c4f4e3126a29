/**
 * Charts by ECharts, drawn on the server: SVG, and the same picture as PNG. Both libraries are development dependencies,
 * loaded only here: a production installation has none, and then reports have tables alone.
 */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { EChartsOption } from 'echarts';

export interface Chart {
  /** Of the files. */
  readonly name: string;
  readonly option: EChartsOption;
  readonly height?: number;
}

const WIDTH = 900;
const HEIGHT = 420;
/** Told apart by the colour-blind as well (Okabe and Ito). */
export const COLOURS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000'];
const FONT = 'DejaVu Sans, Helvetica, Arial, sans-serif';

/** @returns false where the libraries are not installed. */
export async function drawCharts(dir: string, charts: readonly Chart[]): Promise<boolean> {
  const libraries = await load();
  if (libraries === undefined) return false;
  const { echarts, Resvg } = libraries;
  for (const { name, option, height = HEIGHT } of charts) {
    const chart = echarts.init(null, null, { renderer: 'svg', ssr: true, width: WIDTH, height });
    try {
      chart.setOption({
        animation: false,
        backgroundColor: '#ffffff',
        color: COLOURS,
        textStyle: { fontFamily: FONT },
        ...option,
      });
      const svg = chart.renderToSVGString();
      await writeFile(join(dir, `${name}.svg`), svg);
      await writeFile(join(dir, `${name}.png`), new Resvg(svg, { fitTo: { mode: 'zoom', value: 2 } }).render().asPng());
    } finally {
      chart.dispose(); // its timers would keep the process alive
    }
  }
  return true;
}

async function load() {
  try {
    const [echarts, { Resvg }] = await Promise.all([import('echarts'), import('@resvg/resvg-js')]);
    return { echarts, Resvg };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ERR_MODULE_NOT_FOUND') return undefined;
    throw error;
  }
}

/** What every chart with two axes has: title, legend, labelled axes. */
export function axes(title: string, x: string, y: string, extra: Partial<EChartsOption> = {}): EChartsOption {
  return {
    title: { text: title, left: 'center', textStyle: { fontSize: 15 } },
    legend: { bottom: 0, itemGap: 28 },
    grid: { left: 70, right: 40, top: 60, bottom: 80 },
    xAxis: { type: 'value', name: x, nameLocation: 'middle', nameGap: 28 },
    yAxis: { type: 'value', name: y, nameLocation: 'middle', nameGap: 48 },
    ...extra,
  };
}

/** Charts of an artifact that has a name of its own bear it too. */
export const chartName = (artifact: string, bench: string, chart: string) =>
  artifact === bench ? chart : `${artifact}-${chart}`;
