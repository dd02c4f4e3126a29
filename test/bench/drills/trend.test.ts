import { describe, expect, test } from 'vitest';
import { type Sample, trendOf } from '../../../bench/drills/trend.ts';

const MIB = 2 ** 20;
const MINUTE_MS = 60_000;

/** Samples every 2 s of a run whose full load begins after a sixth of it. Figures are functions of the minute. */
function trend(minutes: number, figures: Partial<Record<'rssBytes' | 'heapBytes', (minute: number) => number>>) {
  const fullLoadMs = (minutes * MINUTE_MS) / 6;
  const samples = Array.from({ length: minutes * 30 }, (_, i): Sample => {
    const atMs = i * 2_000;
    const at = (of: 'rssBytes' | 'heapBytes') => (figures[of]?.(atMs / MINUTE_MS) ?? 100) * MIB;
    const level = { externalBytes: MIB, openFiles: 30, stagedBytes: 0, running: 0 };
    return { atMs, rssBytes: at('rssBytes'), heapBytes: at('heapBytes'), ...level };
  });
  return trendOf('a process', samples, fullLoadMs, { stagedBytes: 0 });
}

/** Memory that rises from 180 to 230 MiB from the beginning of the full load on, ever more slowly. */
const filling = (fullLoadMinute: number) => (minute: number) =>
  180 + 50 * (1 - Math.exp(-Math.max(0, minute - fullLoadMinute) / 6));
const leaking = (perHour: number) => (minute: number) => 200 + (perHour * minute) / 60;

describe('the trend of a process', () => {
  test('memory that fills and stays is level after an hour', () => {
    expect(trend(60, { rssBytes: filling(10) })).toMatchObject({ judged: true, grows: '' });
  });

  test('memory may rise for a quarter of an hour under full load', () => {
    const rises = (minutes: number) => (minute: number) => 200 + 20 * Math.min(Math.max(0, minute - 6), minutes);
    expect(trend(36, { rssBytes: rises(15) })).toMatchObject({ judged: true, grows: '' });
    expect(trend(36, { rssBytes: rises(30) }).grows).toBe('its memory grows');
  });

  test('memory that fills is not judged while it fills', () => {
    const short = trend(18, { rssBytes: filling(3) });
    expect(short.rssBytes.perUnit - 2 * short.rssBytes.error).toBeGreaterThan(32 * MIB);
    expect(short).toMatchObject({ judged: false, grows: '' });
  });

  test('memory that rises all the time grows, also after it has filled', () => {
    const both = (minute: number) => filling(10)(minute) + leaking(60)(minute);
    expect(trend(60, { rssBytes: both }).grows).toBe('its memory grows');
    expect(trend(60, { rssBytes: leaking(20) }).grows).toBe('');
  });

  test('a live heap that grows is found in a run that is too short for resident memory', () => {
    expect(trend(18, { rssBytes: filling(3), heapBytes: leaking(40) })).toMatchObject({
      judged: false,
      grows: 'its heap grows',
    });
    expect(trend(3, { heapBytes: leaking(400) }).grows).toBe('');
  });

  test('a saw tooth without a leak is level', () => {
    expect(trend(60, { heapBytes: (minute) => 40 + 30 * (minute % 1.7) }).grows).toBe('');
  });

  test('KV that is staged at the end is left behind', () => {
    expect(trendOf('prefill-0', [], 0, { stagedBytes: 7 }).grows).toBe('7 bytes of KV stay behind');
  });
});
