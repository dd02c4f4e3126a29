/**
 * Charts, drawn as SVG by ECharts without a browser. ECharts is a development dependency that is loaded only here: a
 * production installation does not have it, and its reports consist of tables alone.
 */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { EChartsOption } from 'echarts';

export interface Chart {
  /** Name of the file, without its ending. */
  readonly name: string;
  readonly option: EChartsOption;
  /** In pixels. */
  readonly height?: number;
}

const WIDTH = 900;
const HEIGHT = 420;
/** The palette of Okabe and Ito, which the colour-blind can tell apart as well. */
export const COLOURS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000'];
const FONT = 'DejaVu Sans, Helvetica, Arial, sans-serif';

/** @returns false if ECharts is not installed. */
export async function drawCharts(dir: string, charts: readonly Chart[]): Promise<boolean> {
  const echarts = await loadEcharts();
  if (echarts === undefined) return false;
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
      await writeFile(join(dir, `${name}.svg`), chart.renderToSVGString());
    } finally {
      chart.dispose(); // its timers would keep the process alive
    }
  }
  return true;
}

async function loadEcharts() {
  try {
    return await import('echarts');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ERR_MODULE_NOT_FOUND') return undefined;
    throw error;
  }
}

/** The parts that every chart with two axes has: title, legend, labelled axes. */
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

/** The file name of a chart: it carries the name of the artifact if that differs from the name of the bench. */
export const chartName = (artifact: string, bench: string, chart: string) =>
  artifact === bench ? chart : `${artifact}-${chart}`;
