/**
 * Does a process grow? Its memory and open files are judged by the slope of their floors, after the time in which heaps
 * and malloc fill.
 */
import type { Vitals } from './fleet.ts';
import { fitFloor, type Slope } from './slope.ts';

export interface Sample extends Vitals {
  readonly atMs: number;
}

export interface ProcessTrend {
  readonly name: string;
  readonly samples: number;
  /** Slopes of floors per hour; the time in which the process fills does not count. */
  readonly rssBytes: Slope;
  /** The floor of the heap's size is what lives in it: memory that is not released shows here first. */
  readonly heapBytes: Slope;
  /** Memory of buffers, which V8 counts and does not hold in its heap. */
  readonly externalBytes: Slope;
  readonly openFiles: Slope;
  /** Most bytes of KV that were staged at once, and bytes that were left at the end. */
  readonly stagedPeakBytes: number;
  readonly stagedLeftBytes: number;
  /** Whether the run was long enough to judge the resident memory. */
  readonly judged: boolean;
  /** The figures that grow, in words; '' if none does. */
  readonly grows: string;
}

/** Growth per hour above which it is not noise. */
const LIMITS = { rssBytes: 32 << 20, heapBytes: 16 << 20, externalBytes: 16 << 20, openFiles: 6 };
type Figure = keyof typeof LIMITS;
const WORDS: Readonly<Record<Figure, string>> = {
  rssBytes: 'its memory grows',
  heapBytes: 'its heap grows',
  externalBytes: 'the memory of its buffers grows',
  openFiles: 'its open files grow',
};

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;
/**
 * Share of the time under full load that is left out. V8's heaps have their size by then: full collections are minutes
 * apart at the most.
 */
const LEFT_OUT = 1 / 3;
/**
 * Malloc takes longer than V8: each thread's arena grows until it has held the largest set of blocks that ever lived at
 * once. In a run of 18 minutes the resident memory of a prefill worker rose by 99 ± 18 MiB/h from minute 6 on while
 * its live heap was level (2.4 ± 1.3 MiB/h); in a run of 60 minutes it was level from minute 20 on (4.5 ± 2.2 MiB/h).
 */
const MALLOC_FILLS_MS = 15 * MINUTE_MS;
/** With less time than this, six floors lie too close together: one full collection more or less makes a slope. */
const LEAST_JUDGED_MS = { rssBytes: 14 * MINUTE_MS, other: 9 * MINUTE_MS };

/** Length of a run under full load from which resident memory is judged. */
export const RSS_JUDGED_FROM_MS = MALLOC_FILLS_MS + LEAST_JUDGED_MS.rssBytes;

/**
 * @param fullLoadMs time from which the process has had its full load, in ms from the start.
 * @param last the vitals at the end, when the process should be idle.
 */
export function trendOf(
  name: string,
  samples: readonly Sample[],
  fullLoadMs: number,
  last: Pick<Vitals, 'stagedBytes'> | undefined,
): ProcessTrend {
  const endMs = samples.at(-1)?.atMs ?? 0;
  const loadMs = Math.max(0, endMs - fullLoadMs);
  const since = (leftOutMs: number) => samples.filter(({ atMs }) => atMs >= fullLoadMs + leftOutMs);
  const [settled, filled] = [LEFT_OUT * loadMs, Math.max(LEFT_OUT * loadMs, MALLOC_FILLS_MS)];
  const longEnough = loadMs - filled >= LEAST_JUDGED_MS.rssBytes;
  const part = { rssBytes: since(longEnough ? filled : settled), other: since(settled) };
  const slope = (of: Figure) => {
    const points = (of === 'rssBytes' ? part.rssBytes : part.other).map(
      (sample) => [sample.atMs / HOUR_MS, sample[of]] as const,
    );
    return fitFloor(points);
  };
  const judged = (of: Figure) => (of === 'rssBytes' ? longEnough : loadMs - settled >= LEAST_JUDGED_MS.other);
  const figures = Object.keys(LIMITS) as Figure[];
  const slopes = Object.fromEntries(figures.map((of) => [of, slope(of)])) as Record<Figure, Slope>;
  const stagedLeftBytes = last?.stagedBytes ?? 0;
  // Growth that may as well be noise does not count.
  const beyond = (of: Figure) => judged(of) && slopes[of].perUnit - 2 * slopes[of].error > LIMITS[of];
  const grows = [
    ...figures.filter(beyond).map((of) => WORDS[of]),
    ...(stagedLeftBytes > 0 ? [`${stagedLeftBytes} bytes of KV stay behind`] : []),
  ];
  return {
    name,
    samples: part.rssBytes.length,
    ...slopes,
    stagedPeakBytes: Math.max(0, ...samples.map(({ stagedBytes }) => stagedBytes)),
    stagedLeftBytes,
    judged: longEnough,
    grows: grows.join(', '),
  };
}
