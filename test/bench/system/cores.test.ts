import { describe, expect, it } from 'vitest';
import { divideCores } from '../../../bench/system/cores.ts';

describe('divideCores', () => {
  it('every worker gets an equal run of cores, and the first ones one more if they do not divide evenly', () => {
    expect(divideCores([0, 1, 2, 3, 4], 2, 'split')).toEqual([
      [0, 1, 2],
      [3, 4],
    ]);
  });

  it('every worker gets all cores if they are shared', () => {
    expect(divideCores([0, 1], 2, 'shared')).toEqual([
      [0, 1],
      [0, 1],
    ]);
  });

  it('several workers get the same core if there are fewer cores than workers', () => {
    expect(divideCores([0, 1], 3, 'split')).toEqual([[0], [1], [0]]);
  });
});
