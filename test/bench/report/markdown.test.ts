import { describe, expect, it } from 'vitest';
import { medianInterval } from '../../../bench/measure/statistics.ts';
import { bounds, change, figure, percent, table } from '../../../bench/report/markdown.ts';

describe('markdown', () => {
  it('a figure has three significant digits, and an unknown one is a dash', () => {
    expect([1234.5, 45.67, 1.234, 0, undefined, Number.NaN].map(figure)).toEqual([
      '1235',
      '45.7',
      '1.23',
      '0',
      '—',
      '—',
    ]);
    expect([0.214, -0.05, 0.001].map(change)).toEqual(['↓ 21 %', '↑ 5 %', '±0 %']);
  });

  it('an interval says its probability where few samples give less than 95 %', () => {
    expect(bounds(medianInterval([3, 1, 5, 2, 4, 6]))).toBe('1.00 to 6.00');
    expect(bounds(medianInterval([3, 1, 2, 4]))).toBe('1.00 to 4.00 at 88 %');
    expect(bounds(medianInterval([0.2, 0.1]), percent)).toBe('10 % to 20 % at 50 %');
  });

  it('a table aligns its columns and escapes the character that would end a cell', () => {
    expect(table(['a', 'b'], [['x|y', '1']])).toBe('| a | b |\n| :-- | --: |\n| x\\|y | 1 |');
  });
});
