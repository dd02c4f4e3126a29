import { describe, expect, it } from 'vitest';
import { overlapOf } from '../../../bench/plan/overlap.ts';

describe('overlapOf', () => {
  it('the overlap of streams is the time between the last start and the first end', () => {
    const records = [{ chunksMs: [0, 10, 30, 50, 70] }, { chunksMs: [25, 30, 50, 70, 80] }];
    expect(overlapOf(records)).toEqual({ ms: 17, anyMs: 15.625, steps: 2.5, startsMs: 25 });
  });

  it('streams that never generate at once have no overlap', () => {
    expect(overlapOf([{ chunksMs: [0, 10] }, { chunksMs: [20, 30] }])).toMatchObject({ ms: undefined, startsMs: 20 });
  });
});
