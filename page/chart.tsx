/** One chart of the last minutes, by uPlot. Its colours are the page's, and change with the theme. */
import { useEffect, useRef } from 'preact/hooks';
import uPlot from 'uplot';
import type { Sample } from './live.ts';

interface Series {
  readonly label: string;
  readonly of: (sample: Sample) => number | null;
  /** Name of a colour of style.css. */
  readonly color: string;
}

interface ChartProps {
  readonly title: string;
  readonly samples: readonly Sample[];
  readonly series: readonly Series[];
}

const HEIGHT = 170;
/** Seconds that the axis shows, at least. */
const SHOWN = 60;

/** A colour of style.css as canvas takes it: one that depends on the theme is resolved by the element itself. */
function colorOf(element: HTMLElement, name: string): string {
  element.style.color = `var(${name})`;
  const { color } = getComputedStyle(element);
  element.style.color = '';
  return color;
}

export function Chart({ title, samples, series }: ChartProps) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot>(undefined);
  useEffect(() => {
    const element = place.current!;
    plot.current = draw(element, series);
    const resized = new ResizeObserver(() => {
      if (element.clientWidth > 0) plot.current?.setSize({ width: element.clientWidth, height: HEIGHT });
    });
    resized.observe(element);
    return () => {
      resized.disconnect();
      plot.current?.destroy();
    };
  }, []);
  useEffect(() => {
    const columns = [samples.map(({ at }) => at), ...series.map(({ of }) => samples.map(of))];
    plot.current?.setData(columns as uPlot.AlignedData);
  }, [samples, series]);
  const latest = samples.at(-1);
  const words = latest && series.map(({ label, of }) => `${label}: ${of(latest) ?? 'none'}`).join(', ');
  return (
    <figure>
      <figcaption>
        {title}
        {series.map(({ label, color }) => (
          <span key={label} class="legend" style={{ '--swatch': `var(${color})` }}>
            {label}
          </span>
        ))}
      </figcaption>
      <div ref={place} role="img" aria-label={`${title}. ${words ?? 'nothing yet'}`} />
    </figure>
  );
}

function draw(element: HTMLElement, series: readonly Series[]): uPlot {
  // Asked for with each drawing: the theme may have changed.
  const color = (name: string) => () => colorOf(element, name);
  const axis = { stroke: color('--quiet'), grid: { stroke: color('--line'), width: 1 }, ticks: { show: false } };
  const lowest = (_: uPlot, __: number, most: number | null): [number, number] => [0, Math.max(4, (most ?? 0) * 1.15)];
  return new uPlot(
    {
      width: Math.max(element.clientWidth, 300),
      height: HEIGHT,
      legend: { show: false },
      cursor: { show: false },
      scales: {
        x: { range: (_, min, max) => [Math.min(min ?? 0, (max ?? 0) - SHOWN), max ?? 1] },
        y: { range: lowest },
      },
      axes: [axis, { ...axis, size: 44 }],
      series: [
        {},
        ...series.map((each) => ({
          label: each.label,
          stroke: color(each.color),
          width: 1.5,
          spanGaps: true,
          points: { show: true, size: 4 },
        })),
      ],
    },
    [[], ...series.map(() => [])],
    element,
  );
}
