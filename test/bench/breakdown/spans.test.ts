import { describe, expect, it } from 'vitest';
import { breakDown } from '../../../bench/breakdown/spans.ts';

const TIMELINE = {
  received: 0,
  admitted: 1,
  retrieved: 4,
  tokenized: 6,
  dispatched: 7,
  first_token: 120,
  joined: 125,
  last_token: 220,
  prefill_queue_ms: 2,
  prefill_ms: 105,
  handoff_exposed_ms: 3,
  handoff_ms: 40,
  decode_queue_ms: 1,
  detokenize_ms: 4,
};

describe('breakDown', () => {
  const { spans, overheadMs, exposedMs } = breakDown(TIMELINE, 122, 224, 103);

  it('spans follow one another from sending to the last token', () => {
    expect(spans.map(({ stage, durationMs }) => [stage, durationMs])).toEqual([
      ['network', 2],
      ['admit', 1],
      ['retrieve', 3],
      ['tokenize', 2],
      ['dispatch', 1],
      ['queue', 2],
      ['prefill', 105],
      ['rpc', 6],
      ['handoff', 3],
      ['decode queue', 2],
      ['detokenize', 4],
      ['steps', 93],
    ]);
    expect(spans.at(-1)!.startMs + spans.at(-1)!.durationMs).toBe(224);
  });

  it('overhead is TTFT minus the time of the bare engine', () => expect(overheadMs).toBe(19));

  it('without a bare engine the overhead is unknown', () => {
    expect(breakDown(TIMELINE, 122, 224)).toMatchObject({ bareMs: undefined, overheadMs: undefined });
  });

  it('the exposed part of the hand-over is what the decode worker measured', () => expect(exposedMs).toBe(3));

  it('a request of one token has no decode spans', () => {
    const { joined, ...timeline } = TIMELINE;
    expect(joined).toBe(125);
    const once = breakDown(timeline, 122, 122).spans.slice(-4);
    expect(once.map(({ durationMs }) => durationMs)).toEqual([0, 0, 0, 0]);
  });
});
