import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { EVENTS, SPANS, STAGES, Timeline } from '../../services/lib/request/timeline.ts';
import { documented } from '../support/operations.ts';

describe('Timeline', () => {
  it('the time between two events is measured in seconds', () => {
    const timeline = new Timeline();
    timeline.mark('received', 1000);
    timeline.mark('first_token', 1250);
    timeline.mark('last_token', 1550);
    expect(timeline.between('received', 'last_token')).toBeCloseTo(0.55, 12);
    expect(timeline.ttft).toBeCloseTo(0.25, 12);
  });

  it('an event that has not happened gives no time', () => {
    const timeline = new Timeline();
    expect(timeline.ttft).toBeUndefined();
    timeline.mark('received', 5);
    expect(timeline.ttft).toBeUndefined();
    expect(timeline.between('finished', 'received')).toBeUndefined();
  });

  it('the first stamp of an event and the last value of a stage are kept', () => {
    const timeline = new Timeline();
    timeline.mark('received', 10);
    timeline.mark('received', 99);
    timeline.stage('prefill', 1);
    timeline.stage('prefill', 2);
    timeline.mark('admitted', 11);
    expect(timeline.toJSON()).toEqual({ received: 0, admitted: 1, prefill_ms: 2000 });
    expect([...timeline.stages()]).toEqual([['prefill', 2]]);
  });

  it('an event is stamped by the monotonic clock', () => {
    const before = performance.now();
    const timeline = new Timeline();
    timeline.mark('received', before);
    timeline.mark('admitted');
    timeline.mark('finished', performance.now());
    expect(timeline.between('received', 'admitted')).toBeGreaterThanOrEqual(0);
    expect(timeline.between('admitted', 'finished')).toBeGreaterThanOrEqual(0);
  });

  it('a timeline is logged in ms since the request was received, to the microsecond', () => {
    const ms = fc.double({ min: 0, max: 1e7, noNaN: true });
    fc.assert(
      fc.property(ms, fc.uniqueArray(fc.constantFrom(...EVENTS)), ms, (start, events, step) => {
        const timeline = new Timeline();
        timeline.mark('received', start);
        events.forEach((event, i) => {
          timeline.mark(event, start + i * step);
        });
        const logged = timeline.toJSON();
        expect(logged['received']).toBe(0);
        events.forEach((event, i) => {
          if (event !== 'received') expect(Math.abs(logged[event]! - i * step)).toBeLessThan(0.001);
        });
        expect(JSON.parse(JSON.stringify(timeline))).toEqual(logged);
      }),
    );
  });

  it('a request that was refused before its body was read has no times to log', () => {
    const timeline = new Timeline();
    timeline.mark('finished', 1_234_567);
    expect(timeline.toJSON()).toEqual({});
  });

  it('events and stages have different names, and all of them are documented', () => {
    const words = [...EVENTS, ...STAGES];
    expect(new Set(words).size).toBe(words.length);
    const labels = [...Object.keys(SPANS), ...STAGES];
    expect(new Set(labels).size).toBe(labels.length);
    expect(documented('timeline')).toEqual([...EVENTS, ...labels]);
  });
});
