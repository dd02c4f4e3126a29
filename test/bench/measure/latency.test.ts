import { describe, expect, it } from 'vitest';
import { type ClientRecord, meets, parseSlo, summarise, tpot, ttft } from '../../../bench/measure/latency.ts';

const record = (values: Partial<ClientRecord>): ClientRecord => ({
  index: 0,
  intendedMs: 0,
  sentMs: 0,
  chunksMs: [],
  endedMs: 0,
  promptTokens: 10,
  softTokens: 0,
  cachedTokens: 0,
  outputTokens: 0,
  outcome: 'ok',
  ...values,
});
/**
 * A request sent 10 ms late. Its first token comes 110 ms after the intended time, two more follow after 20 and 40 ms.
 */
const good = (intendedMs: number) =>
  record({
    intendedMs,
    sentMs: intendedMs + 10,
    chunksMs: [110, 130, 170].map((at) => intendedMs + at),
    endedMs: intendedMs + 171,
    outputTokens: 3,
  });

describe('figures of one request', () => {
  it('TTFT counts from the intended send time', () => {
    expect(ttft(good(500))).toBe(110);
    expect(tpot(good(500))).toBe(30);
  });

  it('TPOT divides by tokens and not by chunks, and an answer of one token has none', () => {
    expect(tpot(record({ chunksMs: [100, 200], outputTokens: 6 }))).toBe(20);
    expect(tpot(record({ chunksMs: [100], outputTokens: 1 }))).toBeUndefined();
  });

  it('an objective is met if every bound is', () => {
    expect(meets(good(0), { ttft: 110, tpot: 30 })).toBe(true);
    expect(meets(good(0), { ttft: 109, tpot: 30 })).toBe(false);
    expect(meets(good(0), { ttft: 110, tpot: 29 })).toBe(false);
    expect(meets(good(0), { e2e: 169 })).toBe(false);
    expect(meets({ ...good(0), outcome: 'failed' }, { ttft: 1000 })).toBe(false);
  });
});

describe('summarise', () => {
  const failed = record({ intendedMs: 2000, sentMs: 2000, endedMs: 2500, outcome: 'failed', code: 'saturated' });
  const cancelled = record({ intendedMs: 3000, sentMs: 3000, endedMs: 3100, outcome: 'cancelled' });

  it('errors count against attainment, and planned cancellations do not count', () => {
    const summary = summarise([good(0), good(1000), failed, cancelled], { warmup: 0, slo: { ttft: 200 } });
    expect(summary).toMatchObject({ requests: 4, ok: 2, failed: 1, cancelled: 1, errors: { saturated: 1 } });
    expect(summary.attainment).toBeCloseTo(2 / 3, 12);
    expect(summary.seconds).toBe(3.1);
    expect(summary.goodput).toBeCloseTo(2 / 3.1, 12);
    expect(summary.throughput).toBeCloseTo(6 / 3.1, 12);
    expect(summary.itl.p50).toBe(30);
  });

  it('the warm-up is cut by intended time, and from the duration as well', () => {
    const summary = summarise([good(1000), failed, good(0)], { warmup: 2 });
    expect(summary).toMatchObject({ requests: 1, ok: 0, failed: 1, seconds: 0.5 });
    expect(summary.attainment).toBeUndefined();
  });

  it('a run is degraded if its client was too slow', () => {
    expect(summarise([good(0)], { warmup: 0 }).degraded).toBe(false);
    expect(summarise([{ ...good(0), sentMs: 51 }], { warmup: 0 }).degraded).toBe(true);
  });
});

describe('parseSlo', () => {
  it('an objective is read as bounds in ms', () =>
    expect(parseSlo('ttft:500, tpot:50')).toEqual({ ttft: 500, tpot: 50 }));
  it.each(['ttft', 'ttft:0', 'speed:3', ''])('the objective %j is refused', (text) =>
    expect(() => parseSlo(text)).toThrow(/is not a bound of an objective: it must be/),
  );
});
